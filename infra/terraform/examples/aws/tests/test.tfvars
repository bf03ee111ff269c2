# What the check plans and applies offline.
region         = "eu-central-1"
zones          = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
admin_cidrs    = ["203.0.113.7/32"]
bucket         = "darkroom-test-objects"
image_registry = "registry.example.com/darkroom"
image_tag      = "0.1.0"
accounts_dir   = "../../fixtures/accounts"
tenants        = { me = {} }
models = {
  shapes = {
    directory      = "../../../../local/models/shapes"
    instance_types = { spot = "g6.xlarge", on-demand = "g6.xlarge" }
    workers        = { spot = { max = 4 }, on-demand = { max = 1 } }
  }
}
