variable "name" {
  type        = string
  description = "Name of the deployment."
}

variable "image_registry" {
  type        = string
  description = "Where the images are, as 123456789012.dkr.ecr.eu-central-1.amazonaws.com/darkroom; their names are those of infra/images/build: gateway, webhook, deadletter, scaler, generate-cuda, darkroom."
  validation {
    condition     = can(regex("^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$", var.image_registry))
    error_message = "image_registry: must be a host and path without a scheme and a slash at the end."
  }
}

variable "image_tag" {
  type        = string
  description = "Tag of all images, as 0.1.0. Not latest: nobody could tell what runs."
  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "image_tag: must be a tag, as 0.1.0, and not latest."
  }
}

variable "accounts_dir" {
  type        = string
  description = "Folder that `darkroom accounts --dir` made. Read here: <role>.nk, which go to the cluster and into no plan or state."
  validation {
    condition     = alltrue([for role in ["setup", "gateway", "webhook", "deadletter", "scaler", "worker"] : fileexists("${var.accounts_dir}/${role}.nk")])
    error_message = "accounts_dir: lacks one of setup.nk, gateway.nk, webhook.nk, deadletter.nk, scaler.nk, worker.nk; make them with `darkroom accounts --dir DIR`."
  }
}

variable "keys_revision" {
  type        = number
  description = "Raise it after the keys in accounts_dir have changed: Terraform cannot see that, as it keeps none of them."
  default     = 1
}

variable "nats" {
  type        = object({ url = string, replicas = number, issuer = string, namespace = string })
  description = "NATS: where it is, its servers, the issuer of its certificates, its namespace."
}

variable "bucket" {
  type        = object({ name = string, region = string })
  description = "The bucket of images and models."
}

variable "keda_namespace" {
  type        = string
  description = "Where KEDA is, which asks the scaler."
  default     = "keda"
}

variable "observability_namespace" {
  type        = string
  description = "Where Prometheus and the collector are."
  default     = "observability"
}

variable "otlp_endpoint" {
  type        = string
  description = "Where traces, metrics and logs are pushed; nowhere when null."
  default     = null
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
  description = <<-EOT
    Models by name. directory: here, a diffusers directory, of which only the configuration is read; url: its copy in the object
    store, s3://<bucket>/models/<name> when null; instance_types and workers: by capacity (spot, on-demand) the type of instance,
    which decides the price, and how many workers; target_wait: how long a request may wait before another worker starts.
  EOT
  validation {
    condition     = alltrue([for name in keys(var.models) : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", name))])
    error_message = "models: a name must be 1 to 32 lower-case letters, digits and hyphens here, as it becomes part of objects' names."
  }
  validation {
    condition     = alltrue([for model in values(var.models) : length(model.workers) > 0 && length(setsubtract(keys(model.workers), ["spot", "on-demand"])) == 0 && length(setsubtract(keys(model.workers), keys(model.instance_types))) == 0])
    error_message = "models: workers must be of capacity spot or on-demand, one at least, and each needs its instance_types."
  }
  validation {
    condition     = alltrue(flatten([for model in values(var.models) : [for workers in values(model.workers) : workers.min >= 0 && workers.max >= 1 && workers.min <= workers.max]]))
    error_message = "models: workers need 0 <= min <= max and max >= 1."
  }
  validation {
    condition     = alltrue([for model in values(var.models) : fileexists("${model.directory}/model_index.json")])
    error_message = "models: directory must be a diffusers directory, with model_index.json in it."
  }
}

variable "grace_seconds" {
  type        = object({ spot = optional(number, 75), on-demand = optional(number, 150) })
  description = "Time between SIGTERM and the end of a worker (DARKROOM_GRACE)."
  default     = {}
  validation {
    # Two minutes' notice, of which the node's draining takes some, and a margin comes on top of it here.
    condition     = var.grace_seconds.spot >= 10 && var.grace_seconds.spot <= 90 && var.grace_seconds.on-demand >= 10
    error_message = "grace_seconds: at least 10, and for spot at most 90, as the notice is two minutes."
  }
}

variable "idle" {
  type        = string
  description = "A worker ends after so long without work (DARKROOM_EXIT_WHEN_IDLE). What longer waits cost: docs/scaling.md."
  default     = "30s"
}

variable "cache_gib" {
  type        = number
  description = "What the models that a node keeps on its disk may take."
  default     = 100
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
  description = "Copies of the gateway, pages that may ask it, its service; ingress_cidrs: networks that may reach it besides the cluster's own pods, for a load balancer."
  default     = {}
  validation {
    condition     = var.gateway.min >= 1 && var.gateway.max >= var.gateway.min
    error_message = "gateway: min must be at least 1, as a listener cannot be woken by JetStream, and max at least min."
  }
  validation {
    condition     = contains(["ClusterIP", "LoadBalancer"], var.gateway.service_type)
    error_message = "gateway: service_type must be ClusterIP or LoadBalancer."
  }
}

variable "webhook_max" {
  type        = number
  description = "Copies of the webhook function, at the most."
  default     = 5
}
