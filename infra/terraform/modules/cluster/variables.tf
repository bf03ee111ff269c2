variable "name" {
  type        = string
  description = "Name of the cluster."
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: must be 2 to 31 lower-case letters, digits and hyphens, with a letter first."
  }
}

variable "kubernetes_version" {
  type        = string
  description = "Version of Kubernetes, as 1.34."
  default     = "1.34"
  validation {
    condition     = can(regex("^1\\.(3[2-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: must be 1.32 or newer, as 1.34."
  }
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets of the nodes, in at least two zones."
}

variable "admin_cidrs" {
  type        = list(string)
  description = "Networks that may reach the Kubernetes API from outside; none when empty."
  default     = []
  validation {
    condition     = alltrue([for cidr in var.admin_cidrs : can(cidrnetmask(cidr)) && !endswith(cidr, "/0")])
    error_message = "admin_cidrs: must be networks such as 203.0.113.7/32, and not the whole internet."
  }
}

variable "admin_role_arns" {
  type        = list(string)
  description = "IAM roles that administrate the cluster, besides whoever makes it."
  default     = []
}

variable "cpu_pool" {
  type = object({
    families = optional(list(string), ["m7i", "m7a", "c7i", "c7a"])
    cpus_max = optional(number, 64)
  })
  description = "Nodes of everything but `generate`: families of instances, and how many CPUs there may be in all."
  default     = {}
}

variable "gpu_pools" {
  type = map(object({
    families  = list(string)
    gpus_max  = number
    disk_gib  = optional(number, 200)
    empty_for = optional(string, "5m")
  }))
  description = "By capacity, spot and on-demand: families of instances with GPUs, and how many GPUs there may be in all."
  default = {
    spot      = { families = ["g6", "g5"], gpus_max = 8 }
    on-demand = { families = ["g6", "g5"], gpus_max = 2 }
  }
  validation {
    condition     = length(setsubtract(keys(var.gpu_pools), ["spot", "on-demand"])) == 0
    error_message = "gpu_pools: a capacity is spot or on-demand."
  }
  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.gpus_max >= 1 && length(pool.families) > 0])
    error_message = "gpu_pools: each needs a family of instances, and gpus_max of at least 1: it is what keeps the bill within bounds."
  }
}

variable "node_image" {
  type        = string
  description = "Alias of the nodes' image, as al2023@v20260901; al2023@latest replaces nodes whenever there is a new one."
  default     = "al2023@latest"
  validation {
    condition     = can(regex("^al2023@(latest|v[0-9]{8})$", var.node_image))
    error_message = "node_image: must be al2023@latest or al2023@vYYYYMMDD."
  }
}

variable "log_days" {
  type        = number
  description = "Days that the control plane's logs are kept."
  default     = 365
}
