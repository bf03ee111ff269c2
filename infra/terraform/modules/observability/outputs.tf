output "namespace" {
  description = "Where it is."
  value       = local.namespace
}

output "otlp_endpoint" {
  description = "Where functions push to."
  value       = "http://collector.${local.namespace}.svc.cluster.local:4318"
}

output "dashboards" {
  description = "Dashboards that Grafana shows."
  value       = sort(keys(local.dashboards))
}

output "rules" {
  description = "Files of rules that Prometheus works out."
  value       = sort(keys(local.rules))
}
