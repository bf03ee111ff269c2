variables {
  name         = "darkroom-test-objects"
  cluster_name = "darkroom-test"
  tenants      = { acme = { keep_images_days = 14 }, other = {} }
}

provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}

run "nothing_is_public_or_in_plain" {
  command = plan

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "public access must be blocked in all four ways"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms"
    error_message = "objects must be encrypted with our key"
  }
  assert {
    condition     = aws_kms_key.this.enable_key_rotation
    error_message = "the key must be rotated"
  }
  assert {
    condition = anytrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
    statement.Effect == "Deny" && statement.Principal == "*" && statement.Action == "s3:*" && try(statement.Condition.Bool["aws:SecureTransport"], "") == "false"])
    error_message = "requests without TLS must be denied"
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement : statement.Effect == "Deny"])
    error_message = "the bucket's policy must allow nobody anything"
  }
  assert {
    condition     = aws_s3_bucket.this.force_destroy == false
    error_message = "images must not go with the bucket unless asked for"
  }
}

run "what_is_old_goes" {
  command = plan

  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : one(rule.expiration).days if rule.id == "images-of-acme"]) == 14
    error_message = "a tenant's images are kept as long as was said"
  }
  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : one(one(rule.filter).tag).value if rule.id == "checkpoints"]) == "checkpoint"
    error_message = "checkpoints go by their tag"
  }
  assert {
    condition     = toset([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id]) == toset(["what-is-left-over", "checkpoints", "images-of-acme", "images-of-other"])
    error_message = "no rule may end models or LoRAs"
  }
  assert {
    condition = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
    one(rule.filter).prefix == "${trimprefix(rule.id, "images-of-")}/" if startswith(rule.id, "images-of-")])
    error_message = "a tenant's rule must end at its own folder"
  }
}

run "each_function_may_do_what_it_needs" {
  command = plan

  assert {
    condition     = toset(keys(aws_iam_role.function)) == toset(["gateway", "generate"])
    error_message = "functions that touch no objects get no role"
  }
  assert {
    condition = alltrue([for function, policy in aws_iam_role_policy.objects : alltrue(flatten([for statement in jsondecode(policy.policy).Statement :
    [for action in flatten([statement.Action]) : !strcontains(action, "*")]]))])
    error_message = "no action with a wildcard"
  }
  assert {
    condition = alltrue([for policy in aws_iam_role_policy.objects : alltrue(flatten([for statement in jsondecode(policy.policy).Statement :
    [for resource in flatten([statement.Resource]) : startswith(resource, "arn:aws:s3:::darkroom-test-objects")]]))])
    error_message = "nothing but this bucket"
  }
  assert {
    condition = toset(flatten([for statement in jsondecode(aws_iam_role_policy.objects["gateway"].policy).Statement :
    statement.Action if statement.Effect == "Allow"])) == toset(["s3:ListBucket", "s3:GetObject", "s3:PutObject"])
    error_message = "the gateway removes nothing"
  }
  assert {
    condition = alltrue([for statement in jsondecode(aws_iam_role_policy.objects["gateway"].policy).Statement :
    statement.Resource == "arn:aws:s3:::darkroom-test-objects/*/inputs/*" if statement.Effect == "Allow" && statement.Action == "s3:PutObject"])
    error_message = "the gateway writes starting pictures only"
  }
  assert {
    condition = alltrue([for statement in jsondecode(aws_iam_role_policy.objects["generate"].policy).Statement :
    statement.Resource == "arn:aws:s3:::darkroom-test-objects/*/*/checkpoints/*" if statement.Effect == "Allow" && contains(flatten([statement.Action]), "s3:DeleteObject")])
    error_message = "a worker removes checkpoints only"
  }
  assert {
    condition = anytrue([for statement in jsondecode(aws_iam_role_policy.objects["generate"].policy).Statement :
    statement.Effect == "Deny" && contains(flatten([statement.Action]), "s3:PutObject") && contains(flatten([statement.Resource]), "arn:aws:s3:::darkroom-test-objects/models/*")])
    error_message = "a worker must not be able to change a model"
  }
  assert {
    condition = alltrue([for function, role in aws_iam_role.function :
      jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/kubernetes-service-account"] == "darkroom-${function}"
    && jsondecode(role.assume_role_policy).Statement[0].Principal.Service == "pods.eks.amazonaws.com"])
    error_message = "a role is its own function's only"
  }
}

run "without_a_cluster_no_roles" {
  command = plan
  variables { cluster_name = null }

  assert {
    condition     = length(aws_iam_role.function) == 0 && length(output.object_policies) == 2
    error_message = "policies are given out, roles are not made"
  }
}

run "bad_input_is_refused" {
  command = plan
  variables {
    name                  = "Not_A_Bucket"
    tenants               = { models = {} }
    keep_checkpoints_days = 0
  }
  expect_failures = [var.name, var.tenants, var.keep_checkpoints_days]
}
