variable "name" {
  type        = string
  description = "Name of the deployment and its cluster."
  default     = "darkroom"
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

variable "zones" {
  type        = list(string)
  description = "Three availability zones of the region that have the GPUs you want, one for each NATS server."
  validation {
    condition     = length(distinct(var.zones)) >= 3 && alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "zones: must be at least three different zones of the region, as [\"eu-central-1a\", \"eu-central-1b\", \"eu-central-1c\"]."
  }
}

variable "cidr" {
  type        = string
  description = "Addresses of the network."
  default     = "10.40.0.0/16"
}

variable "nat" {
  type        = string
  description = "NAT gateways: one, or each-zone."
  default     = "one"
}

variable "kubernetes_version" {
  type        = string
  description = "Version of Kubernetes."
  default     = "1.34"
}

variable "node_image" {
  type        = string
  description = "Alias of the nodes' image; pin it in production, as al2023@v20260901."
  default     = "al2023@latest"
}

variable "admin_cidrs" {
  type        = list(string)
  description = "Networks that may reach the Kubernetes API: yours, as [\"203.0.113.7/32\"]. Terraform itself needs it, unless it runs in the network."
}

variable "admin_role_arns" {
  type        = list(string)
  description = "IAM roles that administrate the cluster, besides whoever applies this."
  default     = []
}

variable "gpu_pools" {
  type        = map(object({ families = list(string), gpus_max = number, disk_gib = optional(number, 200), empty_for = optional(string, "5m") }))
  description = "By capacity, spot and on-demand: families of instances with GPUs, and how many GPUs there may be at most."
  default = {
    spot      = { families = ["g6", "g5"], gpus_max = 8 }
    on-demand = { families = ["g6", "g5"], gpus_max = 2 }
  }
}

variable "bucket" {
  type        = string
  description = "Name of the bucket for images and models; unique in the world."
}

variable "destroy_objects" {
  type        = bool
  description = "Whether `terraform destroy` removes images and models, too; otherwise it stops at a bucket that is not empty."
  default     = false
}

variable "tenants" {
  type        = map(object({ keep_images_days = optional(number, 30) }))
  description = "Tenants, and how long their images are kept."
  default     = {}
}

variable "image_registry" {
  type        = string
  description = "Where the container images are that infra/images/build made, as its --repository."
}

variable "image_tag" {
  type        = string
  description = "Their tag."
}

variable "accounts_dir" {
  type        = string
  description = "Folder that `darkroom accounts --dir` made. Keep it: its seeds are nowhere else but in the cluster."
}

variable "keys_revision" {
  type        = number
  description = "Raise it after keys in accounts_dir have changed."
  default     = 1
}

variable "models" {
  type = map(object({
    directory      = string
    url            = optional(string)
    instance_types = map(string)
    workers        = map(object({ min = optional(number, 0), max = number }))
    target_wait    = optional(string, "10s")
    memory         = optional(string, "24Gi")
    cpus           = optional(string, "3")
    batch          = optional(number)
  }))
  description = "Models by name: modules/darkroom says what each field is."
  validation {
    condition = alltrue(flatten([for model in values(var.models) : [for capacity, type in model.instance_types :
    contains(try(var.gpu_pools[capacity].families, []), split(".", type)[0])]]))
    error_message = "models: instance_types must be of a family in gpu_pools of that capacity, else no node would ever come."
  }
}

variable "gateway" {
  type = object({
    min           = optional(number, 2)
    max           = optional(number, 10)
    origins       = optional(list(string), [])
    service_type  = optional(string, "ClusterIP")
    annotations   = optional(map(string), {})
    ingress_cidrs = optional(list(string), [])
    public_url    = optional(string, "")
  })
  description = "Copies of the gateway and how it is reached: modules/darkroom says more."
  default     = {}
}

variable "traces_endpoint" {
  type        = string
  description = "Where traces go, by OTLP over HTTP; nowhere when null."
  default     = null
}
