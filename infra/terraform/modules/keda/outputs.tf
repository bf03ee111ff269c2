output "namespace" {
  description = "Where KEDA runs, when it does."
  value       = kubernetes_namespace_v1.this.metadata[0].name
  depends_on  = [helm_release.keda]
}
