output "vpc_id" {
  description = "The network."
  value       = aws_vpc.this.id
}

output "cidr" {
  description = "Its addresses."
  value       = var.cidr
}

output "private_subnet_ids" {
  description = "Where nodes run, in the order of the zones."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
}
