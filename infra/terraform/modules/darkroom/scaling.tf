# Who decides how many there are of what serves. Workers have their own rules, in workers.tf.

locals {
  nats_files = { for file in fileset("${local.repo}/nats", "{streams,consumers}/*.json") : file => jsondecode(file("${local.repo}/nats/${file}")) }

  # What the webhook function has to do waits in two consumers. Names are those of their files.
  webhook_consumers = {
    events     = { stream = local.nats_files["streams/DARKROOM_EV.json"].name, consumer = local.nats_files["consumers/webhook.json"].durable_name }
    deliveries = { stream = local.nats_files["streams/DARKROOM_HOOK.json"].name, consumer = local.nats_files["consumers/webhook-delivery.json"].durable_name }
  }
  # Events are told one at a time, so more copies help only with deliveries.
  webhook_messages_per_copy = { events = "1000", deliveries = "200" }

  webhook_autoscaler = {
    apiVersion = "keda.sh/v1alpha1"
    kind       = "ScaledObject"
    metadata   = { name = "darkroom-webhook", namespace = local.namespace, labels = local.labels["webhook"] }
    spec = {
      scaleTargetRef  = { name = "darkroom-webhook" }
      pollingInterval = 30
      # A webhook that waits for another attempt is in flight all the time, so this is after the last of them.
      cooldownPeriod  = 300
      minReplicaCount = 0
      maxReplicaCount = var.webhook_max
      # When the scaler does not answer, one copy does what there is.
      fallback = { failureThreshold = 6, replicas = 1, behavior = "currentReplicasIfHigher" }
      advanced = {
        horizontalPodAutoscalerConfig = {
          behavior = { scaleDown = { stabilizationWindowSeconds = 300, policies = [{ type = "Pods", value = 1, periodSeconds = 60 }] } }
        }
      }
      # Pushed, so that the first event wakes it at once.
      triggers = [for name, of in local.webhook_consumers : {
        type = "external-push"
        name = name
        metadata = {
          scalerAddress      = "darkroom-scaler.${local.namespace}.svc.cluster.local:6000"
          stream             = of.stream
          consumer           = of.consumer
          messagesPerReplica = local.webhook_messages_per_copy[name]
        }
      }]
    }
  }

  gateway_autoscaler = {
    apiVersion = "autoscaling/v2"
    kind       = "HorizontalPodAutoscaler"
    metadata   = { name = "darkroom-gateway", namespace = local.namespace, labels = local.labels["gateway"] }
    spec = {
      scaleTargetRef = { apiVersion = "apps/v1", kind = "Deployment", name = "darkroom-gateway" }
      minReplicas    = var.gateway.min
      maxReplicas    = var.gateway.max
      metrics        = [{ type = "Resource", resource = { name = "cpu", target = { type = "Utilization", averageUtilization = 70 } } }]
      behavior       = { scaleDown = { stabilizationWindowSeconds = 300, policies = [{ type = "Pods", value = 1, periodSeconds = 60 }] } }
    }
  }
}
