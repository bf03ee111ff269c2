output "url" {
  description = "What NATS_URL is in the cluster."
  value       = "tls://nats.${local.namespace}.svc.cluster.local:4222"
  depends_on  = [helm_release.nats]
}

output "replicas" {
  description = "Servers, and so copies of each stream."
  value       = local.replicas
}

output "issuer" {
  description = "Cluster issuer of the authority that clients trust."
  value       = local.issuer
  depends_on  = [helm_release.objects]
}

output "namespace" {
  description = "Where the servers are."
  value       = local.namespace
}

output "monitoring" {
  description = "The headless monitoring address, for scalers that read it."
  value       = "nats-headless.${local.namespace}.svc.cluster.local:8222"
}
