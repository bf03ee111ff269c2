# The function `generate`: jobs that KEDA starts, one kind for each model and capacity.
#
# A worker that has started loads its model once, works until it was idle for a while, and exits with 0. Nobody scales it in: a job
# is never ended by KEDA, so no image is thrown away to save money.

locals {
  pairs = merge([for model, settings in var.models : { for capacity, workers in settings.workers : "${model}-${capacity}" => {
    model    = model
    capacity = capacity
    settings = settings
    workers  = workers
    grace    = capacity == "spot" ? var.grace_seconds.spot : var.grace_seconds.on-demand
  } }]...)
  # After the worker's own grace: for the container to end and its last records to be sent.
  grace_margin = 15

  cache_path = "/var/lib/kubelet/darkroom-models"

  workers = { for name, worker in local.pairs : name => {
    apiVersion = "keda.sh/v1alpha1"
    kind       = "ScaledJob"
    metadata   = { name = "darkroom-generate-${name}", namespace = local.namespace, labels = local.labels["generate"] }
    spec = {
      # Our scaler is asked: `external-push` does not do for ScaledJob.
      pollingInterval = 5
      minReplicaCount = worker.workers.min
      maxReplicaCount = worker.workers.max
      # `default` counts running jobs as covering their part of what is wanted, which is how our scaler counts, too; `accurate` and
      # `eager` would start too many, by as many as run.
      scalingStrategy = { strategy = "default" }
      # The other one ends all running jobs when anything here changes.
      rollout                    = { strategy = "gradual", propagationPolicy = "background" }
      successfulJobsHistoryLimit = 2
      failedJobsHistoryLimit     = 5
      jobTargetRef = {
        # A request that failed is delivered again by NATS, to whoever is there; a job that is started again would only be idle.
        backoffLimit            = 0
        ttlSecondsAfterFinished = 600
        template = {
          metadata = {
            labels = merge(local.labels["generate"], { "darkroom/model" = worker.model, "darkroom/capacity" = worker.capacity })
            annotations = merge(local.scraped, {
              # Karpenter replaces no node under it; a spot notice still drains it.
              "karpenter.sh/do-not-disrupt" = "true"
            })
          }
          spec = {
            serviceAccountName            = "darkroom-generate"
            automountServiceAccountToken  = false
            restartPolicy                 = "Never"
            terminationGracePeriodSeconds = worker.grace + local.grace_margin
            securityContext               = local.pod_security
            # One type of instance, whose price the worker counts with.
            nodeSelector = {
              "karpenter.sh/capacity-type"       = worker.capacity
              "node.kubernetes.io/instance-type" = worker.settings.instance_types[worker.capacity]
            }
            tolerations = [{ key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" }]
            containers = [{
              name            = "generate"
              image           = local.image["generate"]
              imagePullPolicy = "IfNotPresent"
              env = concat(
                [for key, value in merge(local.env_of["generate"], local.prices_env, {
                  DARKROOM_MODEL           = coalesce(worker.settings.url, "s3://${var.bucket.name}/models/${worker.model}")
                  DARKROOM_MODEL_CACHE     = "/var/cache/darkroom"
                  DARKROOM_MODEL_CACHE_MAX = "${var.cache_gib}GiB"
                  DARKROOM_LORAS           = "/var/cache/darkroom/loras"
                  DARKROOM_CAPACITY        = worker.capacity
                  DARKROOM_INSTANCE_TYPE   = worker.settings.instance_types[worker.capacity]
                  # Karpenter has the notice and drains the node; the metadata service is closed to pods.
                  DARKROOM_SPOT_NOTICES   = "off"
                  DARKROOM_GRACE          = "${worker.grace}s"
                  DARKROOM_EXIT_WHEN_IDLE = var.idle
                  # So that KEDA need not start the floor again and again.
                  DARKROOM_WORKERS_MIN = tostring(worker.workers.min)
                }) : { name = key, value = value }],
                [for batch in compact([worker.settings.batch == null ? "" : tostring(worker.settings.batch)]) : { name = "DARKROOM_BATCH", value = batch }],
                # By default a worker has a name that nothing else has: this one leads to its pod.
                [{ name = "DARKROOM_WORKER", valueFrom = { fieldRef = { fieldPath = "metadata.name" } } }],
              )
              ports = [{ name = "metrics", containerPort = local.metrics, protocol = "TCP" }]
              resources = {
                requests = { cpu = worker.settings.cpus, memory = worker.settings.memory, "nvidia.com/gpu" = "1" }
                limits   = { memory = worker.settings.memory, "nvidia.com/gpu" = "1" }
              }
              securityContext = local.container_security
              volumeMounts    = concat(local.mounts, local.prices_mounts, [{ name = "models", mountPath = "/var/cache/darkroom" }])
            }]
            volumes = concat(local.volumes_of["generate"], local.prices_volumes, [{ name = "models", persistentVolumeClaim = { claimName = "darkroom-models" } }])
          }
        }
      }
      triggers = [{
        type = "external"
        metadata = {
          scalerAddress = "darkroom-scaler.${local.namespace}.svc.cluster.local:6000"
          model         = worker.model
          capacity      = worker.capacity
          workersMin    = tostring(worker.workers.min)
          workersMax    = tostring(worker.workers.max)
          targetWait    = worker.settings.target_wait
        }
      }]
    }
  } }

  # The models' cache is a folder of the node, so that its workers share it and it outlives them. A pod that names a path of its
  # node is not `restricted`; a claim is, and the volume behind it may be such a path: on each node that node's own.
  cache_objects = [
    {
      apiVersion = "v1"
      kind       = "PersistentVolume"
      metadata   = { name = "darkroom-models" }
      spec = {
        # Kubernetes wants a size and bounds nothing by it; workers do, by DARKROOM_MODEL_CACHE_MAX.
        capacity                      = { storage = "${var.cache_gib}Gi" }
        accessModes                   = ["ReadWriteMany"]
        persistentVolumeReclaimPolicy = "Retain"
        storageClassName              = ""
        claimRef                      = { name = "darkroom-models", namespace = local.namespace }
        # Must be there, so a worker waits until the node's folder is made and theirs.
        hostPath = { path = local.cache_path, type = "Directory" }
      }
    },
    {
      apiVersion = "v1"
      kind       = "PersistentVolumeClaim"
      metadata   = { name = "darkroom-models", namespace = local.namespace }
      spec = {
        accessModes      = ["ReadWriteMany"]
        storageClassName = ""
        volumeName       = "darkroom-models"
        resources        = { requests = { storage = "${var.cache_gib}Gi" } }
      }
    },
    # Makes the folder on each GPU node, below kubelet's own, which is on the node's SSDs where it has some. Its first container
    # is root on the node's folder and therefore not in the functions' namespace; what stays only waits.
    {
      apiVersion = "apps/v1"
      kind       = "DaemonSet"
      metadata   = { name = "darkroom-model-cache", namespace = "kube-system", labels = { "app.kubernetes.io/name" = "darkroom-model-cache", "app.kubernetes.io/part-of" = "darkroom" } }
      spec = {
        selector       = { matchLabels = { "app.kubernetes.io/name" = "darkroom-model-cache" } }
        updateStrategy = { type = "RollingUpdate", rollingUpdate = { maxUnavailable = "100%" } }
        template = {
          metadata = { labels = { "app.kubernetes.io/name" = "darkroom-model-cache", "app.kubernetes.io/part-of" = "darkroom" } }
          spec = {
            automountServiceAccountToken  = false
            priorityClassName             = "system-node-critical"
            terminationGracePeriodSeconds = 1
            nodeSelector                  = { "nvidia.com/gpu.present" = "true" }
            tolerations                   = [{ operator = "Exists" }]
            securityContext               = { seccompProfile = { type = "RuntimeDefault" } }
            initContainers = [{
              name            = "make"
              image           = "public.ecr.aws/docker/library/busybox:1.37.0"
              imagePullPolicy = "IfNotPresent"
              # Moved into place when it is theirs, so that no worker sees it before.
              command   = ["sh", "-euc", "cd /kubelet; [ -d darkroom-models ] || { mkdir -p .darkroom-models; chown ${local.user}:${local.user} .darkroom-models; mv .darkroom-models darkroom-models; }"]
              resources = { requests = { cpu = "10m", memory = "8Mi" }, limits = { cpu = "100m", memory = "32Mi" } }
              securityContext = {
                runAsUser                = 0
                allowPrivilegeEscalation = false
                readOnlyRootFilesystem   = true
                capabilities             = { drop = ["ALL"], add = ["CHOWN"] }
              }
              volumeMounts = [{ name = "kubelet", mountPath = "/kubelet" }]
            }]
            containers = [{
              name            = "wait"
              image           = "registry.k8s.io/pause:3.10.1"
              imagePullPolicy = "IfNotPresent"
              resources       = { requests = { cpu = "1m", memory = "8Mi" }, limits = { cpu = "10m", memory = "16Mi" } }
              securityContext = merge(local.container_security, { runAsUser = local.user })
            }]
            volumes = [{ name = "kubelet", hostPath = { path = "/var/lib/kubelet", type = "Directory" } }]
          }
        }
      }
    },
  ]
}
