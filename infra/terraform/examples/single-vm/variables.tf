variable "name" {
  type        = string
  description = "Name of everything here."
  default     = "darkroom-vm"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name: must be 2 to 31 lower-case letters, digits and hyphens, with a letter first."
  }
}

variable "region" {
  type        = string
  description = "AWS region, as eu-central-1."
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: must be a region such as eu-central-1."
  }
}

variable "zone" {
  type        = string
  description = "Availability zone that has the type of instance, as eu-central-1a."
  validation {
    condition     = startswith(var.zone, var.region) && can(regex("[0-9][a-z]$", var.zone))
    error_message = "zone: must be a zone of the region, as eu-central-1a."
  }
}

variable "instance_type" {
  type        = string
  description = "Type of instance, with an NVIDIA GPU."
  default     = "g6.xlarge"
  validation {
    condition     = can(regex("^(g[4-9][a-z0-9]*|p[3-9][a-z0-9]*)\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type: must be one with an NVIDIA GPU, as g6.xlarge."
  }
}

variable "capacity" {
  type        = string
  description = "spot, which is cheaper and may be taken away, or on-demand. On spot only requests of the pool `any` are served."
  default     = "spot"
  validation {
    condition     = contains(["spot", "on-demand"], var.capacity)
    error_message = "capacity: must be spot or on-demand."
  }
}

variable "stop_when_idle" {
  type        = string
  description = "Stop the machine when there was nothing to do for so long, as 30m; never when null. Who wants it back starts it."
  default     = null
  validation {
    condition     = var.stop_when_idle == null || can(regex("^[0-9]+(s|m|h)$", var.stop_when_idle))
    error_message = "stop_when_idle: must be a duration, as 30m."
  }
}

variable "disk_gib" {
  type        = number
  description = "Size of the disk for streams and the model."
  default     = 100
  validation {
    condition     = var.disk_gib >= 20
    error_message = "disk_gib: must be at least 20."
  }
}

variable "bucket" {
  type        = string
  description = "Name of the bucket for images, the model and the release; unique in the world."
}

variable "destroy_objects" {
  type        = bool
  description = "Whether `terraform destroy` removes what is in the bucket, too."
  default     = false
}

variable "tenant" {
  type        = string
  description = "Whose requests those are that come to the gateway, which listens to this machine only and asks for no key."
  default     = "me"
}

variable "keep_images_days" {
  type        = number
  description = "Days that images are kept."
  default     = 30
}

variable "model" {
  type        = string
  description = "Name of the model, whose diffusers directory is below models/ in the bucket."
  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,64}$", var.model))
    error_message = "model: must be 1 to 64 letters, digits, _ and -."
  }
}

variable "release" {
  type        = string
  description = "File below releases/ in the bucket with the programs: darkroom, darkroom-gateway, darkroom-webhook, darkroom-deadletter, darkroom-generate, nats-server."
  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+\\.tar\\.gz$", var.release))
    error_message = "release: must be the name of a .tar.gz."
  }
}

variable "release_sha256" {
  type        = string
  description = "Its SHA-256, which the machine compares before it runs anything of it."
  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.release_sha256))
    error_message = "release_sha256: must be 64 hexadecimal digits."
  }
}
