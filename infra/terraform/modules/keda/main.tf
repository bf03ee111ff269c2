# KEDA, which starts workers and wakes functions when our scaler says so.

resource "kubernetes_namespace_v1" "this" {
  metadata {
    name = "keda"
    labels = {
      "pod-security.kubernetes.io/enforce" = "restricted"
      "pod-security.kubernetes.io/audit"   = "restricted"
      "pod-security.kubernetes.io/warn"    = "restricted"
    }
  }
}

locals {
  resources = { requests = { cpu = "100m", memory = "128Mi" }, limits = { memory = "1Gi" } }
}

resource "helm_release" "keda" {
  name       = "keda"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  repository = "https://kedacore.github.io/charts"
  chart      = "keda"
  version    = var.chart_version
  timeout    = 600
  values = [yamlencode({
    # The second takes over when the first is gone: while none runs, nothing wakes.
    operator            = { replicaCount = 2 }
    metricsServer       = { replicaCount = 2 }
    webhooks            = { replicaCount = 2 }
    podDisruptionBudget = { operator = { minAvailable = 1 }, metricServer = { minAvailable = 1 }, webhooks = { minAvailable = 1 } }
    resources           = { operator = local.resources, metricServer = local.resources, webhooks = local.resources }
    prometheus          = { operator = { enabled = true, port = 8080 } }
  })]
}
