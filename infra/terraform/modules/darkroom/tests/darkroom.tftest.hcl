variables {
  name           = "darkroom-test"
  image_registry = "registry.example.com/darkroom"
  image_tag      = "0.1.0"
  accounts_dir   = "../../fixtures/accounts"
  otlp_endpoint  = "http://collector.observability.svc.cluster.local:4318"
  nats           = { url = "tls://nats.nats.svc.cluster.local:4222", replicas = 3, issuer = "darkroom-nats", namespace = "nats" }
  bucket         = { name = "darkroom-test-objects", region = "eu-central-1" }
  models = {
    shapes = {
      directory      = "../../../../local/models/shapes"
      instance_types = { spot = "g6.xlarge", on-demand = "g6.xlarge" }
      workers        = { spot = { max = 8 }, on-demand = { max = 2 } }
      target_wait    = "5s"
    }
  }
}

mock_provider "helm" {}
mock_provider "kubernetes" {}

run "workers_come_from_zero_and_are_never_ended_by_keda" {
  command = plan

  assert {
    condition     = toset(keys(local.workers)) == toset(["shapes-spot", "shapes-on-demand"])
    error_message = "a ScaledJob for each model and capacity"
  }
  assert {
    condition     = alltrue([for worker in local.workers : worker.spec.scalingStrategy.strategy == "default" && worker.spec.rollout.strategy == "gradual"])
    error_message = "strategy default, and a change ends no running worker"
  }
  assert {
    condition     = alltrue([for worker in local.workers : worker.spec.jobTargetRef.backoffLimit == 0 && worker.spec.jobTargetRef.template.spec.restartPolicy == "Never"])
    error_message = "NATS delivers again, Kubernetes starts nothing again"
  }
  assert {
    condition     = alltrue([for worker in local.workers : worker.spec.minReplicaCount == 0]) && local.workers["shapes-spot"].spec.maxReplicaCount == 8
    error_message = "from zero to the maximum"
  }
  assert {
    condition = alltrue([for worker in local.workers : worker.spec.jobTargetRef.template.spec.terminationGracePeriodSeconds
    >= tonumber(trimsuffix(one([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env.value if env.name == "DARKROOM_GRACE"]), "s")) + 10])
    error_message = "Kubernetes waits longer than DARKROOM_GRACE"
  }
  assert {
    condition     = local.workers["shapes-spot"].spec.jobTargetRef.template.spec.terminationGracePeriodSeconds < 120
    error_message = "a spot worker ends within the two minutes of its notice"
  }
  assert {
    condition = alltrue([for worker in local.workers :
      length([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env if env.name == "DARKROOM_EXIT_WHEN_IDLE"]) == 1
    && worker.spec.jobTargetRef.template.metadata.annotations["karpenter.sh/do-not-disrupt"] == "true"])
    error_message = "a worker ends by itself, and no node is taken from under it"
  }
  assert {
    condition = alltrue([for worker in local.workers :
      one([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env.value if env.name == "DARKROOM_WORKERS_MIN"])
    == worker.spec.triggers[0].metadata.workersMin && tostring(worker.spec.minReplicaCount) == worker.spec.triggers[0].metadata.workersMin])
    error_message = "workers, KEDA and the scaler are told the same floor"
  }
  assert {
    condition     = alltrue([for worker in local.workers : try(worker.spec.jobTargetRef.activeDeadlineSeconds, null) == null])
    error_message = "no worker is ended for having worked long"
  }
}

run "capacity_decides_what_is_pulled_and_where_it_runs" {
  command = plan

  assert {
    # DARKROOM_POOLS would overrule what the capacity says: on spot, `any` only.
    condition = alltrue([for name, worker in local.workers :
      one([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env.value if env.name == "DARKROOM_CAPACITY"]) == local.pairs[name].capacity
      && worker.spec.jobTargetRef.template.spec.nodeSelector["karpenter.sh/capacity-type"] == local.pairs[name].capacity
    && length([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env if env.name == "DARKROOM_POOLS"]) == 0])
    error_message = "a worker is told the capacity that it runs on"
  }
  assert {
    condition = alltrue([for name, worker in local.workers :
      worker.spec.triggers[0].type == "external" && worker.spec.triggers[0].metadata.model == "shapes" && worker.spec.triggers[0].metadata.capacity == local.pairs[name].capacity
    && worker.spec.triggers[0].metadata.scalerAddress == "darkroom-scaler.darkroom.svc.cluster.local:6000"])
    error_message = "our scaler says how many, for its model and capacity"
  }
  assert {
    condition = alltrue([for worker in local.workers : worker.spec.jobTargetRef.template.spec.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    && anytrue([for toleration in worker.spec.jobTargetRef.template.spec.tolerations : toleration.key == "nvidia.com/gpu"])])
    error_message = "one GPU each, on the nodes kept for it"
  }
  assert {
    condition     = alltrue([for worker in local.workers : one([for env in worker.spec.jobTargetRef.template.spec.containers[0].env : env.value if env.name == "DARKROOM_INSTANCE_TYPE"]) == worker.spec.jobTargetRef.template.spec.nodeSelector["node.kubernetes.io/instance-type"]])
    error_message = "a worker counts with the price of what it runs on"
  }
}

run "what_serves_has_as_many_copies_as_it_may" {
  command = plan

  assert {
    condition     = local.webhook_autoscaler.spec.minReplicaCount == 0 && length(local.webhook_autoscaler.spec.triggers) == 2
    error_message = "webhook comes from zero, by both of its consumers"
  }
  assert {
    condition = alltrue([for trigger in local.webhook_autoscaler.spec.triggers :
      contains([for file in fileset("../../../../nats", "streams/*.json") : jsondecode(file("../../../../nats/${file}")).name], trigger.metadata.stream)
    && contains([for file in fileset("../../../../nats", "consumers/*.json") : jsondecode(file("../../../../nats/${file}")).durable_name], trigger.metadata.consumer)])
    error_message = "streams and consumers are those of nats/"
  }
  assert {
    condition     = local.gateway_autoscaler.spec.minReplicas >= 1 && try(local.deployments["gateway"].spec.replicas, null) == null
    error_message = "a listener cannot be woken by JetStream"
  }
  assert {
    condition     = local.deployments["deadletter"].spec.replicas == 1 && local.deployments["scaler"].spec.replicas == 1
    error_message = "one copy each"
  }
}

run "pods_are_restricted_and_keep_to_themselves" {
  command = plan

  assert {
    condition     = kubernetes_namespace_v1.this.metadata[0].labels["pod-security.kubernetes.io/enforce"] == "restricted"
    error_message = "Kubernetes refuses what is not restricted"
  }
  assert {
    condition = alltrue([for spec in concat([for d in local.deployments : d.spec.template.spec], [for w in local.workers : w.spec.jobTargetRef.template.spec]) :
      spec.securityContext.runAsUser == 65532 && spec.securityContext.runAsNonRoot && spec.automountServiceAccountToken == false
      && spec.containers[0].securityContext.readOnlyRootFilesystem && spec.containers[0].securityContext.capabilities.drop[0] == "ALL"
    && alltrue([for volume in spec.volumes : !can(volume.hostPath)])])
    error_message = "no root, no capabilities, nothing written but to volumes, no path of the node"
  }
  assert {
    condition     = anytrue([for policy in local.network_policies : policy.metadata.name == "nobody" && length(policy.spec.podSelector) == 0 && length(policy.spec.policyTypes) == 2])
    error_message = "what no policy allows is denied"
  }
  assert {
    condition     = alltrue(flatten([for policy in local.policies : [for rule in try(policy.egress, []) : [for to in rule.to : contains(try(to.ipBlock.except, []), "169.254.0.0/16") if try(to.ipBlock.cidr, "") == "0.0.0.0/0"]]]))
    error_message = "nobody reaches the metadata service"
  }
  assert {
    condition = alltrue([for spec in [for w in local.workers : w.spec.jobTargetRef.template.spec] :
    anytrue([for volume in spec.volumes : try(volume.persistentVolumeClaim.claimName, "") == "darkroom-models"])])
    error_message = "workers of a node share its models"
  }
}

run "no_secret_is_in_values" {
  command = plan

  assert {
    condition = alltrue([for name, role in local.roles :
    one([for volume in local.volumes_of[name] : volume.secret.secretName if volume.name == "key"]) == "darkroom-key-${role}"])
    error_message = "each function has its own key and no other's"
  }
  assert {
    condition     = toset(keys(kubernetes_secret_v1.key)) == toset(["setup", "gateway", "webhook", "deadletter", "scaler", "worker"])
    error_message = "a secret for each role"
  }
  assert {
    condition     = alltrue([for secret in kubernetes_secret_v1.key : secret.data_wo_revision == 1])
    error_message = "they are written, not kept"
  }
  assert {
    condition = !anytrue([for release in [helm_release.base, helm_release.setup, helm_release.functions] :
    strcontains(release.values[0], trimspace(file("../../fixtures/accounts/worker.nk"))) || strcontains(release.values[0], "kind\": \"Secret")])
    error_message = "no key may be in a chart's values"
  }
}

run "the_streams_are_made_first_with_three_copies" {
  command = plan

  assert {
    condition     = local.env_of["setup"].DARKROOM_REPLICAS == "3"
    error_message = "as many copies as there are servers"
  }
  assert {
    condition     = helm_release.setup.wait_for_jobs
    error_message = "functions start when the streams are there"
  }
  assert {
    condition     = alltrue([for file in ["model_index.json", "darkroom.toml", "unet__config.json", "scheduler__scheduler_config.json"] : contains(keys(local.model_configs["shapes"]), file)])
    error_message = "what setup reads of a model is given to it"
  }
  assert {
    condition     = length(jsonencode(local.model_configs["shapes"])) < 1048576
    error_message = "it fits into a ConfigMap"
  }
}

run "bad_input_is_refused" {
  command = plan
  variables {
    image_registry = "https://registry.example.com/"
    image_tag      = "latest"
    accounts_dir   = "tests/none"
    grace_seconds  = { spot = 300 }
    gateway        = { min = 0 }
    models = {
      Shapes = {
        directory      = "../../../../local/models"
        instance_types = {}
        workers        = { preemptible = { min = 3, max = 2 } }
      }
    }
  }
  expect_failures = [var.image_registry, var.image_tag, var.accounts_dir, var.grace_seconds, var.gateway, var.models]
}
