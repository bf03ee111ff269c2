# The functions, on Kubernetes. This file: what they share. functions.tf has those that serve, workers.tf those that draw, scaling.tf
# who decides how many, network.tf who may speak with whom, setup.tf the streams.

locals {
  namespace = "darkroom"
  repo      = "${path.module}/../../../.."
  # What each function is called among the roles of NATS.
  roles   = { gateway = "gateway", webhook = "webhook", deadletter = "deadletter", scaler = "scaler", generate = "worker", setup = "setup" }
  has_aws = ["gateway", "generate"]
  user    = 65532
  metrics = 9464

  # As infra/images/build calls them.
  image_name = { setup = "darkroom", generate = "generate-cuda" }
  image      = { for name in keys(local.roles) : name => "${var.image_registry}/${lookup(local.image_name, name, name)}:${var.image_tag}" }

  labels = { for name in keys(local.roles) : name => {
    "app.kubernetes.io/name"    = "darkroom-${name}"
    "app.kubernetes.io/part-of" = "darkroom"
  } }

  scraped = { "prometheus.io/scrape" = "true", "prometheus.io/port" = tostring(local.metrics), "prometheus.io/path" = "/metrics" }

  env_of = { for name, role in local.roles : name => merge(
    {
      NATS_URL          = var.nats.url
      NATS_CA           = "/etc/darkroom/nats/ca.crt"
      NATS_NKEY         = "/etc/darkroom/key/${role}.nk"
      NATS_INBOX_PREFIX = "_INBOX_${role}"
    },
    name == "setup" ? { DARKROOM_REPLICAS = tostring(var.nats.replicas) } : { DARKROOM_METRICS_LISTEN = "0.0.0.0:${local.metrics}" },
    contains(local.has_aws, name) ? {
      DARKROOM_STORE = "s3://${var.bucket.name}"
      AWS_REGION     = var.bucket.region
      # Shorter than the role's credentials live, which sign them.
      DARKROOM_URL_EXPIRES = "1h"
    } : {},
    var.otlp_endpoint == null || name == "setup" ? {} : { OTEL_EXPORTER_OTLP_ENDPOINT = var.otlp_endpoint },
  ) }

  pod_security = {
    runAsNonRoot   = true
    runAsUser      = local.user
    runAsGroup     = local.user
    fsGroup        = local.user
    seccompProfile = { type = "RuntimeDefault" }
  }
  container_security = {
    allowPrivilegeEscalation = false
    readOnlyRootFilesystem   = true
    runAsNonRoot             = true
    capabilities             = { drop = ["ALL"] }
  }

  volumes_of = { for name, role in local.roles : name => [
    # The key that says who it is, which only this function gets.
    { name = "key", secret = { secretName = "darkroom-key-${role}", defaultMode = 288 } },
    # Of the certificate only who signed it.
    { name = "nats", secret = { secretName = "darkroom-nats", items = [{ key = "ca.crt", path = "ca.crt" }] } },
    { name = "tmp", emptyDir = { sizeLimit = "1Gi" } },
  ] }
  mounts = [
    { name = "key", mountPath = "/etc/darkroom/key", readOnly = true },
    { name = "nats", mountPath = "/etc/darkroom/nats", readOnly = true },
    { name = "tmp", mountPath = "/tmp" },
  ]
}

resource "kubernetes_namespace_v1" "this" {
  metadata {
    name = local.namespace
    labels = {
      "pod-security.kubernetes.io/enforce" = "restricted"
      "pod-security.kubernetes.io/audit"   = "restricted"
      "pod-security.kubernetes.io/warn"    = "restricted"
    }
  }
}

# Write-only: the seeds are read when they are sent, and are in no plan and no state.
resource "kubernetes_secret_v1" "key" {
  for_each = toset(values(local.roles))
  metadata {
    name      = "darkroom-key-${each.key}"
    namespace = kubernetes_namespace_v1.this.metadata[0].name
  }
  data_wo          = { "${each.key}.nk" = file("${var.accounts_dir}/${each.key}.nk") }
  data_wo_revision = var.keys_revision
}

locals {
  base = concat(
    [for name in keys(local.roles) : {
      apiVersion = "v1"
      kind       = "ServiceAccount"
      metadata   = { name = "darkroom-${name}", namespace = local.namespace, labels = local.labels[name] }
      # None of them speaks with Kubernetes.
      automountServiceAccountToken = false
    }],
    [
      {
        apiVersion = "cert-manager.io/v1"
        kind       = "Certificate"
        metadata   = { name = "darkroom-nats", namespace = local.namespace }
        spec = {
          secretName = "darkroom-nats"
          commonName = "darkroom"
          duration   = "2160h"
          privateKey = { algorithm = "ECDSA", size = 256, rotationPolicy = "Always" }
          usages     = ["client auth", "digital signature"]
          issuerRef  = { name = var.nats.issuer, kind = "ClusterIssuer" }
        }
      },
      # Workers give way to what serves: a gateway is never put off because of them.
      { apiVersion = "scheduling.k8s.io/v1", kind = "PriorityClass", metadata = { name = "darkroom-serving" }, value = 1000 },
    ],
    local.network_policies,
    local.cache_objects,
  )
}

resource "helm_release" "base" {
  name       = "darkroom-base"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  chart      = "${path.module}/../../charts/objects"
  values     = [yamlencode({ objects = local.base })]
  depends_on = [kubernetes_secret_v1.key]
}
