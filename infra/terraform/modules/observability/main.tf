# Prometheus, the OpenTelemetry collector, and Grafana, with the dashboards and alerts of infra/.

locals {
  namespace = "observability"
  infra     = "${path.module}/../../.."

  dashboards = { for file in fileset("${local.infra}/dashboards", "*.json") : file => file("${local.infra}/dashboards/${file}") }
  # Only files: what is below alerts/ are tests of them.
  rules = { for file in fileset("${local.infra}/alerts", "*.yaml") : file => file("${local.infra}/alerts/${file}") }

  pod_security       = { runAsNonRoot = true, runAsUser = 65532, runAsGroup = 65532, fsGroup = 65532, seccompProfile = { type = "RuntimeDefault" } }
  container_security = { allowPrivilegeEscalation = false, readOnlyRootFilesystem = true, runAsNonRoot = true, capabilities = { drop = ["ALL"] } }
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

# Made anew in each run and sent only when the revision changes, so neither plan nor state has it.
ephemeral "random_password" "grafana" {
  length  = 32
  special = false
}

resource "kubernetes_secret_v1" "grafana" {
  metadata {
    name      = "grafana-admin"
    namespace = kubernetes_namespace_v1.this.metadata[0].name
  }
  data_wo = {
    user     = "admin"
    password = ephemeral.random_password.grafana.result
  }
  data_wo_revision = 1
}

locals {
  objects = [
    { apiVersion = "v1", kind = "ConfigMap", metadata = { name = "darkroom-dashboards", namespace = local.namespace }, data = local.dashboards },
    { apiVersion = "v1", kind = "ConfigMap", metadata = { name = "darkroom-rules", namespace = local.namespace }, data = local.rules },
    # Grafana and Prometheus are reached by `kubectl port-forward`; only metrics and telemetry come in from other pods.
    {
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "only-each-other", namespace = local.namespace }
      spec = {
        podSelector = {}
        policyTypes = ["Ingress"]
        ingress     = [{ from = [{ podSelector = {} }] }]
      }
    },
    {
      apiVersion = "networking.k8s.io/v1"
      kind       = "NetworkPolicy"
      metadata   = { name = "telemetry", namespace = local.namespace }
      spec = {
        podSelector = { matchLabels = { "app.kubernetes.io/name" = "opentelemetry-collector" } }
        policyTypes = ["Ingress"]
        ingress = [{
          from  = [{ namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = "darkroom" } } }]
          ports = [{ port = 4317, protocol = "TCP" }, { port = 4318, protocol = "TCP" }]
        }]
      }
    },
  ]

  # Pods that say so are scraped. The job is the function's name, as in dashboards and alerts.
  scrape = [{
    job_name              = "pods"
    kubernetes_sd_configs = [{ role = "pod" }]
    relabel_configs = [
      { source_labels = ["__meta_kubernetes_pod_annotation_prometheus_io_scrape"], action = "keep", regex = "true" },
      { source_labels = ["__meta_kubernetes_pod_phase"], action = "drop", regex = "Pending|Succeeded|Failed|Completed" },
      { source_labels = ["__meta_kubernetes_pod_annotation_prometheus_io_path"], action = "replace", target_label = "__metrics_path__", regex = "(.+)" },
      # Pods with several ports are found once for each: the annotated port makes them the same target.
      { source_labels = ["__meta_kubernetes_pod_ip", "__meta_kubernetes_pod_annotation_prometheus_io_port"], action = "replace", target_label = "__address__", regex = "(.+);(\\d+)", replacement = "$1:$2" },
      { source_labels = ["__meta_kubernetes_pod_label_app_kubernetes_io_name"], action = "replace", target_label = "job" },
      { source_labels = ["__meta_kubernetes_pod_name"], action = "replace", target_label = "instance" },
      { source_labels = ["__meta_kubernetes_namespace"], action = "replace", target_label = "namespace" },
    ]
  }]

  prometheus = {
    configmapReload          = { prometheus = { enabled = true, containerSecurityContext = local.container_security } }
    alertmanager             = { enabled = false }
    kube-state-metrics       = { enabled = false }
    prometheus-node-exporter = { enabled = false }
    prometheus-pushgateway   = { enabled = false }
    server = {
      retention                = "${var.keep_days}d"
      persistentVolume         = { enabled = true, size = "${var.volume_gib}Gi", storageClass = var.storage_class }
      global                   = { scrape_interval = "15s", evaluation_interval = "15s" }
      extraConfigmapMounts     = [{ name = "darkroom-rules", configMap = "darkroom-rules", mountPath = "/etc/darkroom/rules", readOnly = true }]
      resources                = { requests = { cpu = "250m", memory = "1Gi" }, limits = { memory = "4Gi" } }
      securityContext          = local.pod_security
      containerSecurityContext = local.container_security
      # A change of rules is a change of the pod, which reads them when it starts.
      podAnnotations = { "darkroom/rules" = sha256(jsonencode(local.rules)) }
    }
    serverFiles = {
      "prometheus.yml" = {
        rule_files     = ["/etc/darkroom/rules/*.yaml"]
        scrape_configs = local.scrape
      }
    }
    alertRelabelConfigs = {}
    extraScrapeConfigs  = ""
  }
  prometheus_values = merge(local.prometheus, { for key, value in { server = merge(local.prometheus.server, { alertmanagers = [{ static_configs = [{ targets = var.alertmanagers }] }] }) } : key => value if length(var.alertmanagers) > 0 })

  collector = {
    mode               = "deployment"
    fullnameOverride   = "collector"
    replicaCount       = 2
    image              = { repository = "otel/opentelemetry-collector-k8s" }
    presets            = {}
    ports              = { jaeger-compact = { enabled = false }, jaeger-thrift = { enabled = false }, jaeger-grpc = { enabled = false }, zipkin = { enabled = false } }
    resources          = { requests = { cpu = "100m", memory = "128Mi" }, limits = { memory = "512Mi" } }
    podSecurityContext = local.pod_security
    securityContext    = local.container_security
    # Metrics are scraped from the functions themselves, so that none counts twice: what is pushed here are traces and logs.
    config = {
      receivers = {
        jaeger     = null
        zipkin     = null
        prometheus = null
        otlp       = { protocols = { grpc = { endpoint = "0.0.0.0:4317" }, http = { endpoint = "0.0.0.0:4318" } } }
      }
      processors = { memory_limiter = { check_interval = "1s", limit_percentage = 80, spike_limit_percentage = 20 }, batch = {} }
      exporters  = merge({ debug = { verbosity = "basic" } }, { for key, value in { otlphttp = { endpoint = coalesce(var.traces_endpoint, "unset") } } : key => value if var.traces_endpoint != null })
      service = {
        pipelines = {
          traces  = { receivers = ["otlp"], processors = ["memory_limiter", "batch"], exporters = [var.traces_endpoint == null ? "debug" : "otlphttp"] }
          logs    = { receivers = ["otlp"], processors = ["memory_limiter", "batch"], exporters = ["debug"] }
          metrics = { receivers = ["otlp"], processors = ["memory_limiter", "batch"], exporters = ["debug"] }
        }
      }
    }
  }

  grafana = {
    admin         = { existingSecret = kubernetes_secret_v1.grafana.metadata[0].name, userKey = "user", passwordKey = "password" }
    rbac          = { create = false }
    testFramework = { enabled = false }
    resources     = { requests = { cpu = "100m", memory = "256Mi" }, limits = { memory = "1Gi" } }
    datasources = {
      "datasources.yaml" = {
        apiVersion  = 1
        datasources = [{ name = "Prometheus", uid = "prometheus", type = "prometheus", url = "http://prometheus-server.${local.namespace}.svc.cluster.local", access = "proxy", isDefault = true }]
      }
    }
    dashboardProviders = {
      "dashboardproviders.yaml" = {
        apiVersion = 1
        providers  = [{ name = "darkroom", orgId = 1, folder = "Darkroom", type = "file", disableDeletion = true, editable = false, options = { path = "/var/lib/grafana/dashboards/darkroom" } }]
      }
    }
    dashboardsConfigMaps = { darkroom = "darkroom-dashboards" }
    # It unpacks into its own folders as it starts, so they are not read-only.
    containerSecurityContext = merge(local.container_security, { readOnlyRootFilesystem = false, seccompProfile = { type = "RuntimeDefault" } })
    initChownData            = { enabled = false }
    podAnnotations           = { "darkroom/dashboards" = sha256(jsonencode(local.dashboards)) }
  }
}

resource "helm_release" "objects" {
  name      = "observability-objects"
  namespace = kubernetes_namespace_v1.this.metadata[0].name
  chart     = "${path.module}/../../charts/objects"
  values    = [yamlencode({ objects = local.objects })]
}

resource "helm_release" "prometheus" {
  name       = "prometheus"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  repository = "https://prometheus-community.github.io/helm-charts"
  chart      = "prometheus"
  version    = "27.19.0"
  values     = [yamlencode(local.prometheus_values)]
  depends_on = [helm_release.objects]
}

resource "helm_release" "collector" {
  name       = "collector"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  repository = "https://open-telemetry.github.io/opentelemetry-helm-charts"
  chart      = "opentelemetry-collector"
  version    = "0.158.3"
  values     = [yamlencode(local.collector)]
}

resource "helm_release" "grafana" {
  name       = "grafana"
  namespace  = kubernetes_namespace_v1.this.metadata[0].name
  repository = "https://grafana.github.io/helm-charts"
  chart      = "grafana"
  version    = "10.5.1"
  values     = [yamlencode(local.grafana)]
  depends_on = [helm_release.objects]
}
