variables {
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
}

mock_provider "helm" {}
mock_provider "kubernetes" {}

provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = module.network.data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}
override_data {
  target = module.cluster.data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}
override_data {
  target = module.bucket.data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}

run "the_parts_fit_together" {
  command = plan

  assert {
    condition     = output.workers == { shapes-spot = "darkroom-generate-shapes-spot", shapes-on-demand = "darkroom-generate-shapes-on-demand" }
    error_message = "workers of both capacities"
  }
  assert {
    condition     = output.store == "s3://darkroom-test-objects" && endswith(output.upload_commands["shapes"], "s3://darkroom-test-objects/models/shapes")
    error_message = "models are uploaded to where workers fetch them"
  }
}

run "a_type_that_no_pool_has_is_refused" {
  command = plan
  variables {
    models = {
      shapes = {
        directory      = "../../../../local/models/shapes"
        instance_types = { spot = "p5.48xlarge" }
        workers        = { spot = { max = 1 } }
      }
    }
  }
  expect_failures = [var.models]
}

run "bad_input_is_refused" {
  command = plan
  variables {
    name  = "Bad Name"
    zones = ["eu-central-1a"]
  }
  expect_failures = [var.name, var.zones]
}

run "a_region_that_is_none_is_refused" {
  command = plan
  variables { region = "europe" }
  expect_failures = [var.region]
}
