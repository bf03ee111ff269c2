# Three NATS servers with JetStream, one in each zone, from the project's own chart: certificates, accounts, volumes, and who may
# connect.
#
# It makes no streams and consumers: `darkroom setup` does, with three copies.

locals {
  nats      = "${path.module}/../../../../nats"
  namespace = "nats"
  replicas  = 3

  # How much the streams may hold together is said by their own files.
  streams    = [for file in setunion(fileset(local.nats, "streams/*.json"), fileset(local.nats, "buckets/*.json")) : jsondecode(file("${local.nats}/${file}"))]
  file_bytes = sum([for stream in local.streams : stream.max_bytes if stream.storage == "file"])
  memory_mib = ceil(sum(concat([0], [for stream in local.streams : stream.max_bytes if stream.storage == "memory"])) / pow(2, 20))
  volume_gib = coalesce(var.volume_gib, ceil(2 * local.file_bytes / pow(2, 30)))

  # The server's limits are those of nats/server.conf.
  server_conf = file("${local.nats}/server.conf")
  limits = { for name in ["max_payload", "ping_interval", "ping_max", "write_deadline", "max_control_line"] :
  name => trim(regex("(?m)^${name}: (\\S+)$", local.server_conf)[0], "\"") }
  sync_interval = regex("(?m)^\\s+sync_interval: (\\S+)$", local.server_conf)[0]
  tls_min       = trim(regex("(?m)^\\s+min_version: (\\S+)$", local.server_conf)[0], "\"")

  labels = { "app.kubernetes.io/name" = "nats", "app.kubernetes.io/component" = "nats", "app.kubernetes.io/instance" = "nats" }
  names = [
    "nats", "nats.${local.namespace}", "nats.${local.namespace}.svc", "nats.${local.namespace}.svc.cluster.local",
    "nats-headless", "*.nats-headless", "*.nats-headless.${local.namespace}.svc.cluster.local", "localhost",
  ]
  issuer = "darkroom-nats"
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

resource "helm_release" "cert_manager" {
  name             = "cert-manager"
  namespace        = "cert-manager"
  create_namespace = true
  repository       = "https://charts.jetstack.io"
  chart            = "cert-manager"
  version          = "v1.21.2"
  values = [yamlencode({
    crds         = { enabled = true }
    replicaCount = 2
  })]
}

locals {
  # Keys of certificates are made in the cluster and never leave it: Terraform's state has none.
  objects = concat([
    { apiVersion = "cert-manager.io/v1", kind = "ClusterIssuer", metadata = { name = "darkroom-own" }, spec = { selfSigned = {} } },
    {
      apiVersion = "cert-manager.io/v1"
      kind       = "Certificate"
      metadata   = { name = "darkroom-nats-ca", namespace = "cert-manager" }
      spec = {
        isCA       = true
        commonName = "Darkroom NATS"
        secretName = "darkroom-nats-ca"
        duration   = "87600h"
        privateKey = { algorithm = "ECDSA", size = 256 }
        issuerRef  = { name = "darkroom-own", kind = "ClusterIssuer" }
      }
    },
    { apiVersion = "cert-manager.io/v1", kind = "ClusterIssuer", metadata = { name = local.issuer }, spec = { ca = { secretName = "darkroom-nats-ca" } } },
    {
      apiVersion = "cert-manager.io/v1"
      kind       = "Certificate"
      metadata   = { name = "nats", namespace = local.namespace }
      spec = {
        secretName  = "nats-tls"
        dnsNames    = local.names
        duration    = "2160h"
        renewBefore = "720h"
        privateKey  = { algorithm = "ECDSA", size = 256, rotationPolicy = "Always" }
        usages      = ["server auth", "client auth", "digital signature"]
        issuerRef   = { name = local.issuer, kind = "ClusterIssuer" }
      }
    },
    {
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "nobody", namespace = local.namespace }
      spec       = { podSelector = {}, policyTypes = ["Ingress", "Egress"] }
    },
    {
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "servers", namespace = local.namespace }
      spec = {
        podSelector = { matchLabels = local.labels }
        policyTypes = ["Ingress", "Egress"]
        ingress = [
          {
            from  = [for namespace in var.client_namespaces : { namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = namespace } } }]
            ports = concat([{ port = 4222, protocol = "TCP" }], length(var.websocket_origins) > 0 ? [{ port = 8080, protocol = "TCP" }] : [])
          },
          { from = [{ podSelector = { matchLabels = local.labels } }], ports = [{ port = 6222, protocol = "TCP" }] },
          {
            from  = [for namespace in var.metrics_namespaces : { namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = namespace } } }]
            ports = [{ port = 7777, protocol = "TCP" }]
          },
        ]
        egress = [
          { to = [{ podSelector = { matchLabels = local.labels } }], ports = [{ port = 6222, protocol = "TCP" }] },
          {
            to    = [{ namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = "kube-system" } } }]
            ports = [{ port = 53, protocol = "UDP" }, { port = 53, protocol = "TCP" }]
          },
        ]
      }
    },
    ], length(var.monitoring_namespaces) == 0 ? [] : [{
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "monitoring", namespace = local.namespace }
      spec = {
        podSelector = { matchLabels = local.labels }
        policyTypes = ["Ingress"]
        ingress = [{
          from  = [for namespace in var.monitoring_namespaces : { namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = namespace } } }]
          ports = [{ port = 8222, protocol = "TCP" }]
        }]
      }
  }])

  restricted = {
    allowPrivilegeEscalation = false
    readOnlyRootFilesystem   = true
    runAsNonRoot             = true
    capabilities             = { drop = ["ALL"] }
  }

  values = {
    tlsCA = { enabled = true, secretName = "nats-tls" }
    config = {
      cluster = { enabled = true, replicas = local.replicas, tls = { enabled = true, secretName = "nats-tls" } }
      jetstream = {
        enabled     = true
        fileStore   = { enabled = true, pvc = { enabled = true, size = "${local.volume_gib}Gi", storageClassName = var.storage_class } }
        memoryStore = { enabled = true, maxSize = "${2 * local.memory_mib}Mi" }
        merge       = { sync_interval = local.sync_interval }
      }
      nats = {
        tls = { enabled = true, secretName = "nats-tls", merge = { min_version = local.tls_min, timeout = 5 } }
      }
      websocket = {
        enabled = length(var.websocket_origins) > 0
        tls     = { enabled = true, secretName = "nats-tls", merge = { min_version = local.tls_min } }
        merge   = { allowed_origins = var.websocket_origins }
      }
      # On the headless service, by which each server is asked by name; closed by the network policy.
      monitor = { enabled = true, port = 8222 }
      merge = merge({ "00$include" = "accounts.conf" },
      { for name, value in local.limits : name => can(regex("^[0-9]+(KB|MB|GB)?$", value)) ? "<< ${value} >>" : value })
    }
    configMap = {
      merge = {
        data = {
          "accounts.conf" = file("${local.nats}/accounts.conf")
          "keys.conf"     = file("${var.accounts_dir}/keys.conf")
          "tenants.conf"  = file("${var.accounts_dir}/tenants.conf")
        }
      }
    }
    container = {
      image = { tag = var.image_tag }
      env   = { GOMEMLIMIT = "${floor(local.memory_gib * 0.85 * 1024)}MiB" }
      merge = {
        securityContext = local.restricted
        resources       = { requests = { cpu = var.resources.cpu, memory = var.resources.memory }, limits = { memory = var.resources.memory } }
      }
    }
    reloader     = { merge = { securityContext = local.restricted, resources = { requests = { cpu = "10m", memory = "32Mi" }, limits = { memory = "64Mi" } } } }
    promExporter = { enabled = true, merge = { securityContext = local.restricted, resources = { requests = { cpu = "10m", memory = "32Mi" }, limits = { memory = "128Mi" } } } }
    podTemplate = {
      # What a tenant's account imports is connected by a restart of the servers, one by one, and not by a reload.
      configChecksumAnnotation = true
      topologySpreadConstraints = {
        "topology.kubernetes.io/zone" = { maxSkew = 1, whenUnsatisfiable = "DoNotSchedule" }
        "kubernetes.io/hostname"      = { maxSkew = 1, whenUnsatisfiable = "DoNotSchedule" }
      }
      merge = {
        metadata = { annotations = { "prometheus.io/scrape" = "true", "prometheus.io/port" = "7777", "prometheus.io/path" = "/metrics" } }
        spec = {
          automountServiceAccountToken = false
          securityContext              = { runAsNonRoot = true, runAsUser = 1000, runAsGroup = 1000, fsGroup = 1000, seccompProfile = { type = "RuntimeDefault" } }
        }
      }
    }
    podDisruptionBudget = { enabled = true, merge = { spec = { maxUnavailable = 1 } } }
    # A shell with the keys of an administrator is not left running.
    natsBox = { enabled = false }
  }
  memory_gib = tonumber(regex("^([0-9]+)Gi$", var.resources.memory)[0])
}

resource "helm_release" "objects" {
  name       = "nats-objects"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  chart      = "${path.module}/../../charts/objects"
  values     = [yamlencode({ objects = local.objects })]
  depends_on = [helm_release.cert_manager]
}

resource "helm_release" "nats" {
  name       = "nats"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  repository = "https://nats-io.github.io/k8s/helm/charts/"
  chart      = "nats"
  version    = "2.14.2"
  timeout    = 900
  values     = [yamlencode(local.values)]
  depends_on = [helm_release.objects]

  lifecycle {
    precondition {
      condition     = local.volume_gib * pow(2, 30) > local.file_bytes
      error_message = "volume_gib: the streams may hold ${ceil(local.file_bytes / pow(2, 30))} GiB together, by their files in nats/; the volume must be larger."
    }
  }
}
