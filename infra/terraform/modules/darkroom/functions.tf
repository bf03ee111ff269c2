# The functions that serve: gateway, webhook, deadletter, scaler.

locals {
  serving = {
    # Answers HTTP, so one is always there.
    gateway = {
      ports     = { http = 8080, metrics = local.metrics }
      env       = merge({ DARKROOM_HTTP_LISTEN = "0.0.0.0:8080" }, length(var.gateway.origins) > 0 ? { DARKROOM_HTTP_ORIGINS = join(",", var.gateway.origins) } : {})
      resources = { requests = { cpu = "250m", memory = "128Mi" }, limits = { cpu = "2", memory = "512Mi" } }
      ready     = { httpGet = { path = "/health/ready", port = "http" }, periodSeconds = 5, timeoutSeconds = 7 }
      alive     = { httpGet = { path = "/health/live", port = "http" }, periodSeconds = 10, timeoutSeconds = 5, failureThreshold = 6 }
      # Those who wait for a job are told to come back; 75 seconds is how long they may wait.
      grace = 90
    }
    webhook = {
      ports     = { metrics = local.metrics }
      env       = var.gateway.public_url == "" ? {} : { DARKROOM_GATEWAY_URL = var.gateway.public_url }
      resources = { requests = { cpu = "50m", memory = "64Mi" }, limits = { cpu = "1", memory = "256Mi" } }
      ready     = local.ready
      alive     = local.alive
      grace     = 30
    }
    deadletter = {
      ports     = { metrics = local.metrics }
      env       = {}
      resources = { requests = { cpu = "50m", memory = "64Mi" }, limits = { cpu = "1", memory = "512Mi" } }
      ready     = local.ready
      alive     = local.alive
      grace     = 30
    }
    scaler = {
      ports = { grpc = 6000, http = 8081, metrics = local.metrics }
      env = merge(
        { DARKROOM_SCALER_LISTEN = "0.0.0.0:6000", DARKROOM_SCALER_HTTP_LISTEN = "0.0.0.0:8081" },
        local.prices_env,
      )
      resources = { requests = { cpu = "50m", memory = "64Mi" }, limits = { cpu = "1", memory = "256Mi" } }
      ready     = local.ready
      alive     = local.alive
      grace     = 30
    }
  }
  # Ready while NATS is there. Alive while it listens: who has lost NATS connects again by itself, and a restart would help nobody.
  ready = { httpGet = { path = "/health", port = "metrics" }, periodSeconds = 5, timeoutSeconds = 5 }
  alive = { tcpSocket = { port = "metrics" }, periodSeconds = 10, timeoutSeconds = 5, failureThreshold = 6 }

  deployments = { for name, function in local.serving : name => {
    apiVersion = "apps/v1"
    kind       = "Deployment"
    metadata   = { name = "darkroom-${name}", namespace = local.namespace, labels = local.labels[name] }
    # How many there are of gateway and webhook is said by their autoscalers alone, else each `apply` would set it anew.
    spec = merge({ for key, value in { replicas = 1 } : key => value if contains(["deadletter", "scaler"], name) }, {
      selector             = { matchLabels = { "app.kubernetes.io/name" = "darkroom-${name}" } }
      revisionHistoryLimit = 3
      strategy             = { type = "RollingUpdate", rollingUpdate = { maxUnavailable = 0, maxSurge = 1 } }
      template = {
        metadata = { labels = local.labels[name], annotations = local.scraped }
        spec = {
          serviceAccountName            = "darkroom-${name}"
          automountServiceAccountToken  = false
          priorityClassName             = "darkroom-serving"
          terminationGracePeriodSeconds = function.grace
          securityContext               = local.pod_security
          topologySpreadConstraints = [{
            maxSkew           = 1
            topologyKey       = "topology.kubernetes.io/zone"
            whenUnsatisfiable = "ScheduleAnyway"
            labelSelector     = { matchLabels = { "app.kubernetes.io/name" = "darkroom-${name}" } }
          }]
          containers = [{
            name            = name
            image           = local.image[name]
            imagePullPolicy = "IfNotPresent"
            env             = [for key, value in merge(local.env_of[name], function.env) : { name = key, value = value }]
            ports           = [for port, number in function.ports : { name = port, containerPort = number, protocol = "TCP" }]
            resources       = function.resources
            readinessProbe  = function.ready
            livenessProbe   = function.alive
            securityContext = local.container_security
            volumeMounts    = concat(local.mounts, name == "scaler" ? local.prices_mounts : [])
          }]
          volumes = concat(local.volumes_of[name], name == "scaler" ? local.prices_volumes : [])
        }
      }
    })
  } }

  services = {
    gateway = {
      apiVersion = "v1"
      kind       = "Service"
      metadata   = { name = "darkroom-gateway", namespace = local.namespace, labels = local.labels["gateway"], annotations = var.gateway.annotations }
      spec = {
        type     = var.gateway.service_type
        selector = { "app.kubernetes.io/name" = "darkroom-gateway" }
        ports    = [{ name = "http", port = 80, targetPort = "http", protocol = "TCP" }]
      }
    }
    scaler = {
      apiVersion = "v1"
      kind       = "Service"
      metadata   = { name = "darkroom-scaler", namespace = local.namespace, labels = local.labels["scaler"] }
      spec = {
        type     = "ClusterIP"
        selector = { "app.kubernetes.io/name" = "darkroom-scaler" }
        ports = [
          { name = "grpc", port = 6000, targetPort = "grpc", protocol = "TCP" },
          { name = "http", port = 8081, targetPort = "http", protocol = "TCP" },
        ]
      }
    }
  }

  # Only of what there may be two: a budget for one copy would keep its node for ever.
  budgets = { for name, available in { gateway = var.gateway.min > 1 ? 1 : 0 } : name => {
    apiVersion = "policy/v1"
    kind       = "PodDisruptionBudget"
    metadata   = { name = "darkroom-${name}", namespace = local.namespace }
    spec       = { maxUnavailable = 1, selector = { matchLabels = { "app.kubernetes.io/name" = "darkroom-${name}" } } }
  } if available > 0 }

  # Prices by type of instance, where the repository has them.
  prices_file    = "${local.repo}/infra/prices.toml"
  has_prices     = fileexists(local.prices_file)
  prices_env     = local.has_prices ? { DARKROOM_PRICES = "/etc/darkroom/prices/prices.toml" } : {}
  prices_mounts  = local.has_prices ? [{ name = "prices", mountPath = "/etc/darkroom/prices", readOnly = true }] : []
  prices_volumes = local.has_prices ? [{ name = "prices", configMap = { name = "darkroom-prices" } }] : []
  prices_objects = [for text in local.has_prices ? [file(local.prices_file)] : [] : {
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "darkroom-prices", namespace = local.namespace }
    data       = { "prices.toml" = text }
  }]
}

resource "helm_release" "functions" {
  name      = "darkroom-functions"
  namespace = kubernetes_namespace_v1.this.metadata[0].name
  chart     = "${path.module}/../../charts/objects"
  timeout   = 600
  values = [yamlencode({ objects = concat(
    local.prices_objects,
    values(local.deployments),
    values(local.services),
    values(local.budgets),
    [local.gateway_autoscaler, local.webhook_autoscaler],
    values(local.workers),
  ) })]
  depends_on = [helm_release.setup]
}
