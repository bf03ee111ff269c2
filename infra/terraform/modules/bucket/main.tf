# The bucket with images, checkpoints, models and LoRAs, and who may do what in it.
#
# Keys: <tenant>/<job>/<index>.<ext>, <tenant>/<job>/checkpoints/…, <tenant>/inputs/…, models/<name>/…, loras/….
# It does not upload models: that is the operator's, with rights of their own.

data "aws_region" "this" {}
data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

locals {
  # By name, not by the resource, so that a plan shows policies in full.
  arn = "arn:${data.aws_partition.this.partition}:s3:::${var.name}"
}

resource "aws_kms_key" "this" {
  description             = "${var.name}: objects"
  enable_key_rotation     = true
  deletion_window_in_days = 7
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Account"
      Effect    = "Allow"
      Principal = { AWS = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}:root" }
      Action    = "kms:*"
      Resource  = "*"
    }]
  })
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18:Who asked for what is in the gateway's traces; logs of each request would cost more than most images
  #checkov:skip=CKV_AWS_144:An image can be made again from its request, and a model be uploaded again
  #checkov:skip=CKV2_AWS_62:What happens to jobs is told by events on NATS, by which nothing depends on the bucket
  bucket        = var.name
  force_destroy = var.destroy_objects
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id
  rule {
    # One key of the bucket for many objects: fewer calls to KMS, which are paid each.
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.this.arn
    }
  }
}

# A model that was overwritten or removed by mistake can be had back for some days.
resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.arn, "${local.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "OnlyNewTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.arn, "${local.arn}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
      },
    ]
  })
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket     = aws_s3_bucket.this.id
  depends_on = [aws_s3_bucket_versioning.this]

  rule {
    id     = "what-is-left-over"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
    noncurrent_version_expiration {
      noncurrent_days = var.keep_overwritten_days
    }
    expiration {
      expired_object_delete_marker = true
    }
  }

  # A rule's prefix knows no wildcard and checkpoints are below every job, so workers tag them.
  rule {
    id     = "checkpoints"
    status = "Enabled"
    filter {
      tag {
        key   = "darkroom"
        value = "checkpoint"
      }
    }
    expiration {
      days = var.keep_checkpoints_days
    }
  }

  dynamic "rule" {
    for_each = var.tenants
    content {
      id     = "images-of-${rule.key}"
      status = "Enabled"
      filter {
        prefix = "${rule.key}/"
      }
      expiration {
        days = rule.value.keep_images_days
      }
    }
  }
}
