# Who may speak with whom. What is not here is denied, both ways.

locals {
  in_namespace = { for name in [var.nats.namespace, var.keda_namespace, var.observability_namespace, "kube-system"] : name => { namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = name } } } }
  # Addresses that are not on the internet: private and shared networks, the link's own with the metadata service.
  not_internet = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"]
  internet     = { ipBlock = { cidr = "0.0.0.0/0", except = local.not_internet } }

  policies = {
    nobody = { podSelector = {}, policyTypes = ["Ingress", "Egress"] }

    # Names, NATS, and telemetry: all of them.
    functions = {
      podSelector = { matchLabels = { "app.kubernetes.io/part-of" = "darkroom" } }
      policyTypes = ["Ingress", "Egress"]
      ingress = [
        { from = [local.in_namespace[var.observability_namespace]], ports = [{ port = local.metrics, protocol = "TCP" }] },
      ]
      egress = [
        { to = [local.in_namespace["kube-system"]], ports = [{ port = 53, protocol = "UDP" }, { port = 53, protocol = "TCP" }] },
        { to = [local.in_namespace[var.nats.namespace]], ports = [{ port = 4222, protocol = "TCP" }] },
        { to = [local.in_namespace[var.observability_namespace]], ports = [{ port = 4317, protocol = "TCP" }, { port = 4318, protocol = "TCP" }] },
      ]
    }

    # S3, and the agent of the node that hands out the credentials of the pod's role.
    objects = {
      podSelector = { matchExpressions = [{ key = "app.kubernetes.io/name", operator = "In", values = [for name in local.has_aws : "darkroom-${name}"] }] }
      policyTypes = ["Egress"]
      egress = [
        { to = [local.internet], ports = [{ port = 443, protocol = "TCP" }] },
        { to = [{ ipBlock = { cidr = "169.254.170.23/32" } }], ports = [{ port = 80, protocol = "TCP" }] },
      ]
    }

    # Webhooks go to the internet and nowhere else, besides the function's own guard.
    webhooks = {
      podSelector = { matchLabels = { "app.kubernetes.io/name" = "darkroom-webhook" } }
      policyTypes = ["Egress"]
      egress      = [{ to = [local.internet], ports = [{ port = 443, protocol = "TCP" }, { port = 80, protocol = "TCP" }] }]
    }

    scaler = {
      podSelector = { matchLabels = { "app.kubernetes.io/name" = "darkroom-scaler" } }
      policyTypes = ["Ingress"]
      ingress     = [{ from = [local.in_namespace[var.keda_namespace]], ports = [{ port = 6000, protocol = "TCP" }, { port = 8081, protocol = "TCP" }] }]
    }

    gateway = {
      podSelector = { matchLabels = { "app.kubernetes.io/name" = "darkroom-gateway" } }
      policyTypes = ["Ingress"]
      ingress = [{
        from  = concat([{ namespaceSelector = {} }], [for cidr in var.gateway.ingress_cidrs : { ipBlock = { cidr = cidr } }])
        ports = [{ port = 8080, protocol = "TCP" }]
      }]
    }
  }

  network_policies = [for name, spec in local.policies : {
    apiVersion = "networking.k8s.io/v1"
    kind       = "NetworkPolicy"
    metadata   = { name = name, namespace = local.namespace }
    spec       = spec
  }]
}
