# `darkroom setup`: streams, buckets and consumers, before anything needs them. It reads of each model the configuration only.

locals {
  configuration = { for name, model in var.models : name => setunion(
    fileset(model.directory, "{model_index.json,darkroom.toml}"),
    fileset(model.directory, "*/{config.json,scheduler_config.json}"),
  ) }

  # Keys of a ConfigMap have no slash.
  model_configs = { for name, model in var.models : name => { for file in local.configuration[name] : replace(file, "/", "__") => file("${model.directory}/${file}") } }

  # Anything that it depends on makes it another job: jobs cannot be changed.
  setup_id        = substr(sha256(jsonencode([local.image["setup"], local.model_configs, local.env_of["setup"], var.keys_revision, local.topology_digest])), 0, 10)
  topology_digest = sha256(join("", [for file in setunion(fileset("${local.repo}/nats", "streams/*.json"), fileset("${local.repo}/nats", "buckets/*.json"), fileset("${local.repo}/nats", "consumers/*.json")) : filesha256("${local.repo}/nats/${file}")]))

  setup_objects = concat(
    [for name, files in local.model_configs : {
      apiVersion = "v1"
      kind       = "ConfigMap"
      metadata   = { name = "darkroom-model-${name}", namespace = local.namespace }
      data       = files
    }],
    [{
      apiVersion = "batch/v1"
      kind       = "Job"
      metadata   = { name = "darkroom-setup-${local.setup_id}", namespace = local.namespace, labels = local.labels["setup"] }
      spec = {
        backoffLimit          = 6
        activeDeadlineSeconds = 600
        template = {
          metadata = { labels = local.labels["setup"] }
          spec = {
            serviceAccountName           = "darkroom-setup"
            automountServiceAccountToken = false
            restartPolicy                = "Never"
            securityContext              = local.pod_security
            containers = [{
              name            = "setup"
              image           = local.image["setup"]
              imagePullPolicy = "IfNotPresent"
              args            = concat(["setup"], flatten([for name in keys(var.models) : ["--model", "/models/${name}"]]))
              env             = [for key, value in local.env_of["setup"] : { name = key, value = value }]
              resources       = { requests = { cpu = "50m", memory = "64Mi" }, limits = { cpu = "1", memory = "256Mi" } }
              securityContext = local.container_security
              volumeMounts    = concat(local.mounts, [for name in keys(var.models) : { name = "model-${name}", mountPath = "/models/${name}", readOnly = true }])
            }]
            volumes = concat(
              local.volumes_of["setup"],
              [for name, files in local.model_configs : { name = "model-${name}", configMap = { name = "darkroom-model-${name}", items = [for key in keys(files) : { key = key, path = replace(key, "__", "/") }] } }],
            )
          }
        }
      }
    }],
  )
}

resource "helm_release" "setup" {
  name          = "darkroom-setup"
  namespace     = kubernetes_namespace_v1.this.metadata[0].name
  chart         = "${path.module}/../../charts/objects"
  wait_for_jobs = true
  values        = [yamlencode({ objects = local.setup_objects })]
  depends_on    = [helm_release.base]
}
