variable "name" {
  type        = string
  description = "Name of the deployment; begins the name of everything here."
}

variable "cidr" {
  type        = string
  description = "Addresses of the network, as 10.40.0.0/16."
  default     = "10.40.0.0/16"
  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(tonumber(split("/", var.cidr)[1]), 0) <= 16
    error_message = "cidr: must be an IPv4 network of /16 or larger, as 10.40.0.0/16."
  }
}

variable "zones" {
  type        = list(string)
  description = "Availability zones; three, so that each NATS server has one of its own."
  validation {
    condition     = length(distinct(var.zones)) == length(var.zones) && length(var.zones) >= 2 && length(var.zones) <= 6
    error_message = "zones: must name 2 to 6 different availability zones."
  }
}

variable "nat" {
  type        = string
  description = "NAT gateways: one (cheap; its zone's failure cuts all off), or each-zone."
  default     = "one"
  validation {
    condition     = contains(["one", "each-zone"], var.nat)
    error_message = "nat: must be one or each-zone."
  }
}

variable "log_days" {
  type        = number
  description = "Days that records of connections are kept."
  default     = 365
}
