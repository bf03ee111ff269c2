output "namespace" {
  description = "Where the functions are."
  value       = local.namespace
}

output "gateway" {
  description = "The gateway's address in the cluster."
  value       = "http://darkroom-gateway.${local.namespace}.svc.cluster.local"
  depends_on  = [helm_release.functions]
}

output "workers" {
  description = "The ScaledJobs, by model and capacity."
  value       = { for name, worker in local.workers : name => worker.metadata.name }
}
