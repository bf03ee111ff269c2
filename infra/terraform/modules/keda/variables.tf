variable "chart_version" {
  type        = string
  description = "Version of KEDA and its chart. Before 2.20 a consumer that is missing scaled to the maximum."
  default     = "2.20.2"
  validation {
    condition     = can(regex("^2\\.(2[0-9]|[3-9][0-9])\\.[0-9]+$", var.chart_version))
    error_message = "chart_version: must be 2.20.0 or newer, as 2.20.2."
  }
}
