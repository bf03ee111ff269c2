output "instance_id" {
  description = "The machine."
  value       = aws_instance.this.id
}

output "upload_command" {
  description = "Puts a model where the machine gets it from; DIRECTORY is a diffusers directory."
  value       = "aws s3 sync DIRECTORY ${module.bucket.store}/models/${var.model}"
}

output "shell_command" {
  description = "A shell on the machine."
  value       = "aws ssm start-session --region ${var.region} --target ${aws_instance.this.id}"
}

output "gateway_command" {
  description = "The gateway, on this machine at port 8080."
  value       = "aws ssm start-session --region ${var.region} --target ${aws_instance.this.id} --document-name AWS-StartPortForwardingSession --parameters portNumber=8080,localPortNumber=8080"
}

output "start_command" {
  description = "Gets it back after it has stopped itself."
  value       = "aws ec2 start-instances --region ${var.region} --instance-ids ${aws_instance.this.id}"
}
