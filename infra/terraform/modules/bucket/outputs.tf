output "name" {
  description = "The bucket."
  value       = aws_s3_bucket.this.bucket
}

output "arn" {
  description = "Its ARN."
  value       = local.arn
}

output "store" {
  description = "What DARKROOM_STORE is."
  value       = "s3://${var.name}"
}

output "object_policies" {
  description = "For each function that touches objects, the policy that lets it; for those that run elsewhere than in the cluster."
  value       = local.object_policies
}

output "key_policy" {
  description = "The policy that lets a function use the bucket's key, by S3 only."
  value       = local.key_policy
}
