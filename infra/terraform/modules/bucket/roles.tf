# What each function may do in the bucket. A function that is not here gets no role and no credentials at all: webhook,
# deadletter and scaler never touch objects.

locals {
  by_s3 = { StringEquals = { "kms:ViaService" = "s3.${data.aws_region.this.region}.amazonaws.com" } }

  # Without the right to list, S3 answers 403 instead of 404 for what is not there.
  look = { Sid = "TellMissingFromForbidden", Effect = "Allow", Action = "s3:ListBucket", Resource = local.arn }
  key  = { Sid = "Key", Effect = "Allow", Action = ["kms:Decrypt", "kms:GenerateDataKey"], Resource = aws_kms_key.this.arn, Condition = local.by_s3 }

  statements = {
    # Reads images to sign their URLs, writes starting pictures that clients upload.
    gateway = [
      local.look,
      { Sid = "Read", Effect = "Allow", Action = "s3:GetObject", Resource = "${local.arn}/*/*" },
      { Sid = "WriteInputs", Effect = "Allow", Action = "s3:PutObject", Resource = "${local.arn}/*/inputs/*" },
      { Sid = "NoModels", Effect = "Deny", Action = ["s3:GetObject", "s3:PutObject"], Resource = ["${local.arn}/models/*", "${local.arn}/loras/*"] },
    ]
    # Reads models, LoRAs, starting pictures and checkpoints; writes images and checkpoints; removes only the latter.
    generate = [
      local.look,
      { Sid = "Read", Effect = "Allow", Action = "s3:GetObject", Resource = "${local.arn}/*" },
      { Sid = "Write", Effect = "Allow", Action = ["s3:PutObject", "s3:PutObjectTagging"], Resource = "${local.arn}/*/*/*" },
      { Sid = "RemoveCheckpoints", Effect = "Allow", Action = "s3:DeleteObject", Resource = "${local.arn}/*/*/checkpoints/*" },
      { Sid = "ModelsAreReadOnly", Effect = "Deny", Action = ["s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject"], Resource = ["${local.arn}/models/*", "${local.arn}/loras/*"] },
    ]
  }
  # The key's ARN is known after it is made; what is allowed on objects is known before.
  object_policies = { for function, statements in local.statements : function => jsonencode({ Version = "2012-10-17", Statement = statements }) }
  key_policy      = jsonencode({ Version = "2012-10-17", Statement = [local.key] })
  roles           = var.cluster_name == null ? {} : local.object_policies
}

resource "aws_iam_role" "function" {
  for_each = local.roles
  name     = "${var.name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:SourceAccount"                         = data.aws_caller_identity.this.account_id
          "aws:RequestTag/kubernetes-namespace"       = var.namespace
          "aws:RequestTag/kubernetes-service-account" = "darkroom-${each.key}"
          "aws:RequestTag/eks-cluster-name"           = var.cluster_name
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "objects" {
  for_each = local.roles
  name     = "objects"
  role     = aws_iam_role.function[each.key].id
  policy   = each.value
}

resource "aws_iam_role_policy" "key" {
  for_each = local.roles
  name     = "key"
  role     = aws_iam_role.function[each.key].id
  policy   = local.key_policy
}

resource "aws_eks_pod_identity_association" "function" {
  for_each        = local.roles
  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = "darkroom-${each.key}"
  role_arn        = aws_iam_role.function[each.key].arn
}
