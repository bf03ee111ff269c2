variable "accounts_dir" {
  type        = string
  description = "Folder that `darkroom accounts --dir` made. Read here: keys.conf and tenants.conf, which hold public keys only."
  validation {
    condition     = fileexists("${var.accounts_dir}/keys.conf") && fileexists("${var.accounts_dir}/tenants.conf")
    error_message = "accounts_dir: holds no keys.conf and tenants.conf; make it with `darkroom accounts --dir DIR`."
  }
}

variable "storage_class" {
  type        = string
  description = "Storage class of the streams' volumes; SSDs."
}

variable "volume_gib" {
  type        = number
  description = "Size of each server's volume; when null, twice what all streams may hold."
  default     = null
}

variable "image_tag" {
  type        = string
  description = "Version of nats-server."
  default     = "2.15.1-alpine"
  validation {
    # Before 2.12.5 a work queue may lose messages that were delivered too often.
    condition     = can(regex("^2\\.(12\\.([5-9]|[1-9][0-9])|1[3-9]\\.[0-9]+|[2-9][0-9]\\.[0-9]+)(-alpine)?$", var.image_tag))
    error_message = "image_tag: must be a version of 2.12.5 or newer, as 2.15.1-alpine."
  }
}

variable "client_namespaces" {
  type        = list(string)
  description = "Namespaces whose pods may connect to NATS."
  default     = ["darkroom"]
}

variable "metrics_namespaces" {
  type        = list(string)
  description = "Namespaces whose pods may read the servers' metrics."
  default     = ["observability"]
}

variable "monitoring_namespaces" {
  type        = list(string)
  description = "Namespaces whose pods may read the monitoring pages, which ask nobody who they are and tell all accounts, streams and subjects: that of KEDA, if its own scaler of JetStream is used. Ours needs none."
  default     = []
}

variable "websocket_origins" {
  type        = list(string)
  description = "Pages of these origins may connect by WebSocket, as https://app.example.com; no WebSocket when empty."
  default     = []
  validation {
    condition     = alltrue([for origin in var.websocket_origins : can(regex("^https://[^/*]+$", origin))])
    error_message = "websocket_origins: must be origins such as https://app.example.com."
  }
}

variable "resources" {
  type        = object({ cpu = optional(string, "1"), memory = optional(string, "4Gi") })
  description = "What each server has."
  default     = {}
}
