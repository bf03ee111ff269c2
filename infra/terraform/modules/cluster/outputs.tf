output "name" {
  description = "The cluster, when it can run pods."
  value       = aws_eks_cluster.this.name
  depends_on  = [helm_release.pools]
}

output "endpoint" {
  description = "Where its API is."
  value       = aws_eks_cluster.this.endpoint
}

output "certificate_authority" {
  description = "Who signed the API's certificate, PEM."
  value       = base64decode(aws_eks_cluster.this.certificate_authority[0].data)
}

output "storage_class" {
  description = "Storage class of encrypted SSD volumes."
  value       = local.storage_class.metadata.name
  depends_on  = [helm_release.pools]
}
