variable "name" {
  type        = string
  description = "Name of the bucket; unique in the world."
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "name: must be 3 to 63 lower-case letters, digits and hyphens, with none of the latter at the ends."
  }
}

variable "tenants" {
  type        = map(object({ keep_images_days = optional(number, 30) }))
  description = "Tenants, and how long each one's images are kept. Whoever is not named keeps them until somebody removes them."
  default     = {}
  validation {
    condition     = alltrue([for tenant in keys(var.tenants) : can(regex("^[A-Za-z0-9_-]{1,64}$", tenant)) && !contains(["models", "loras"], tenant)])
    error_message = "tenants: names are 1 to 64 letters, digits, _ and -, and not models or loras, whose folders they would share."
  }
  validation {
    condition     = alltrue([for tenant in values(var.tenants) : tenant.keep_images_days >= 2])
    error_message = "tenants: keep_images_days must be at least 2, as a completed job can be looked up for a day."
  }
}

variable "keep_checkpoints_days" {
  type        = number
  description = "Days until a checkpoint goes that its worker could not remove; a job has ended long before."
  default     = 7
  validation {
    condition     = var.keep_checkpoints_days >= 1
    error_message = "keep_checkpoints_days: must be at least 1."
  }
}

variable "cluster_name" {
  type        = string
  description = "The EKS cluster whose pods get the roles; no roles when null."
  default     = null
}

variable "namespace" {
  type        = string
  description = "Namespace of the functions' service accounts, darkroom-<function>."
  default     = "darkroom"
}

variable "destroy_objects" {
  type        = bool
  description = "Whether destroying the bucket removes what is in it; otherwise it refuses while there is something."
  default     = false
}

variable "keep_overwritten_days" {
  type        = number
  description = "Days that an object can be had back after it was overwritten or removed; checkpoints are kept as long, too."
  default     = 3
  validation {
    condition     = var.keep_overwritten_days >= 1
    error_message = "keep_overwritten_days: must be at least 1."
  }
}
