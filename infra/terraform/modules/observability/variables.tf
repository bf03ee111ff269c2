variable "storage_class" {
  type        = string
  description = "Storage class of what Prometheus keeps."
}

variable "keep_days" {
  type        = number
  description = "Days that figures are kept."
  default     = 15
}

variable "volume_gib" {
  type        = number
  description = "Size of the volume for them."
  default     = 50
}

variable "traces_endpoint" {
  type        = string
  description = "Where the collector passes traces on to, by OTLP over HTTP, as https://tempo.example.com; they are dropped when null."
  default     = null
}

variable "alertmanagers" {
  type        = list(string)
  description = "Alertmanagers that alerts are sent to, as alertmanager.example.com:9093; alerts are only shown when empty."
  default     = []
}
