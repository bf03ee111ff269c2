variables {
  name       = "darkroom-test"
  subnet_ids = ["subnet-0a", "subnet-0b", "subnet-0c"]
}

mock_provider "helm" {}

provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}

run "gpu_pools_are_bounded_tainted_and_empty_at_first" {
  command = plan

  assert {
    condition     = toset(keys(local.gpu_pool)) == toset(["spot", "on-demand"])
    error_message = "there are spot and on-demand pools"
  }
  assert {
    condition = alltrue([for capacity, pool in local.gpu_pool :
    one([for r in pool.spec.template.spec.requirements : r.values if r.key == "karpenter.sh/capacity-type"]) == [capacity]])
    error_message = "each pool has its own capacity only"
  }
  assert {
    condition     = local.gpu_pool["spot"].spec.limits["nvidia.com/gpu"] == "8" && local.gpu_pool["on-demand"].spec.limits["nvidia.com/gpu"] == "2"
    error_message = "the number of GPUs is bounded"
  }
  assert {
    condition = alltrue([for pool in local.gpu_pool :
    anytrue([for taint in pool.spec.template.spec.taints : taint.key == "nvidia.com/gpu" && taint.effect == "NoSchedule"])])
    error_message = "nothing but workers may run on a GPU node"
  }
  assert {
    condition     = alltrue([for pool in local.gpu_pool : pool.spec.disruption.consolidationPolicy == "WhenEmpty" && pool.spec.disruption.consolidateAfter == "5m"])
    error_message = "a node goes when it is empty, and only then"
  }
  assert {
    condition     = alltrue([for object in yamldecode(helm_release.pools.values[0]).objects : !contains(["Deployment", "DaemonSet"], object.kind)])
    error_message = "nothing that would keep a GPU node"
  }
  assert {
    condition = toset([for object in yamldecode(helm_release.pools.values[0]).objects : "${object.kind} ${object.metadata.name}"]) == toset([
      "StorageClass darkroom-ssd", "EC2NodeClass darkroom-cpu", "EC2NodeClass darkroom-gpu-spot", "EC2NodeClass darkroom-gpu-on-demand",
    "NodePool darkroom-cpu", "NodePool darkroom-gpu-spot", "NodePool darkroom-gpu-on-demand"])
    error_message = "all of it is applied"
  }
}

run "nodes_keep_their_credentials_and_disks_to_themselves" {
  command = plan

  assert {
    condition     = alltrue([for class in local.node_class : class.spec.metadataOptions.httpTokens == "required" && class.spec.metadataOptions.httpPutResponseHopLimit == 1])
    error_message = "pods must not reach the node's credentials"
  }
  assert {
    condition     = one(aws_launch_template.fixed.metadata_options).http_put_response_hop_limit == 1 && one(aws_launch_template.fixed.metadata_options).http_tokens == "required"
    error_message = "neither on the fixed nodes"
  }
  assert {
    condition     = alltrue([for class in local.node_class : alltrue([for disk in class.spec.blockDeviceMappings : disk.ebs.encrypted])])
    error_message = "disks are encrypted"
  }
  assert {
    condition     = local.storage_class.parameters.encrypted == "true" && local.storage_class.parameters.type == "gp3" && local.storage_class.reclaimPolicy == "Retain"
    error_message = "volumes are encrypted SSDs that outlive their claim"
  }
}

run "the_api_is_closed_unless_opened" {
  command = plan

  assert {
    condition     = one(aws_eks_cluster.this.vpc_config).endpoint_public_access == false && one(aws_eks_cluster.this.vpc_config).endpoint_private_access
    error_message = "the API must not be public by default"
  }
  assert {
    condition     = one(aws_eks_cluster.this.access_config).authentication_mode == "API"
    error_message = "who may come in is said by access entries only"
  }
  assert {
    condition     = one(aws_eks_cluster.this.encryption_config).resources == toset(["secrets"])
    error_message = "secrets are encrypted with our key"
  }
  assert {
    condition     = jsondecode(aws_eks_addon.before_nodes["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "network policies must be enforced"
  }
}

run "karpenter_touches_its_own_only" {
  command = plan

  assert {
    condition = alltrue([for statement in local.karpenter_policy.Statement :
    try(length(statement.Condition), 0) > 0 if contains(["EndOwn", "StartAsOwn", "StartFromOwnTemplates", "ChangeOwnProfiles", "GiveNodesTheirRole", "TagAsItStarts", "NameOwn"], statement.Sid)])
    error_message = "what changes something has a condition"
  }
  assert {
    condition = alltrue([for statement in local.karpenter_policy.Statement :
    alltrue([for action in flatten([statement.Action]) : !strcontains(action, "*")])])
    error_message = "no action with a wildcard"
  }
  assert {
    condition = alltrue([for statement in local.karpenter_policy.Statement :
    alltrue([for action in flatten([statement.Action]) : can(regex(":(Describe|List|Get)", action))]) if try(statement.Resource, "") == "*"])
    error_message = "on everything it may only look"
  }
  assert {
    condition     = contains([for rule in aws_cloudwatch_event_rule.interruptions : jsondecode(rule.event_pattern)["detail-type"][0]], "EC2 Spot Instance Interruption Warning")
    error_message = "it hears of spot notices"
  }
}

run "bad_input_is_refused" {
  command = plan
  variables {
    name               = "Bad Name"
    kubernetes_version = "1.20"
    admin_cidrs        = ["0.0.0.0/0"]
    gpu_pools          = { preemptible = { families = [], gpus_max = 0 } }
    node_image         = "ubuntu"
  }
  expect_failures = [var.name, var.kubernetes_version, var.admin_cidrs, var.gpu_pools, var.node_image]
}
