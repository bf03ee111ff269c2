output "kubeconfig_command" {
  description = "Gets you into the cluster."
  value       = "aws eks update-kubeconfig --name ${var.name} --region ${var.region}"
}

output "store" {
  description = "Where images go; models are below models/."
  value       = module.bucket.store
}

output "upload_commands" {
  description = "Puts the models where workers fetch them."
  value       = { for name, model in var.models : name => "aws s3 sync ${model.directory} ${coalesce(model.url, "${module.bucket.store}/models/${name}")}" }
}

output "gateway" {
  description = "The gateway, in the cluster."
  value       = module.darkroom.gateway
}

output "gateway_command" {
  description = "The gateway, on this machine."
  value       = "kubectl --namespace ${module.darkroom.namespace} port-forward service/darkroom-gateway 8080:80"
}

output "grafana_command" {
  description = "Grafana, on this machine; the password is in the secret grafana-admin."
  value       = "kubectl --namespace ${module.observability.namespace} port-forward service/grafana 3000:80"
}

output "workers" {
  description = "ScaledJobs by model and capacity."
  value       = module.darkroom.workers
}
