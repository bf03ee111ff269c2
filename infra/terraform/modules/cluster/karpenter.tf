# Karpenter: nodes come when pods need them and go when they are empty. What it may do, what tells it of interruptions, its chart.

locals {
  queue           = "${var.name}-karpenter"
  ours            = { StringEquals = { "aws:ResourceTag/kubernetes.io/cluster/${var.name}" = "owned" }, StringLike = { "aws:ResourceTag/karpenter.sh/nodepool" = "*" } }
  to_be_ours      = { StringEquals = { "aws:RequestTag/kubernetes.io/cluster/${var.name}" = "owned" }, StringLike = { "aws:RequestTag/karpenter.sh/nodepool" = "*" } }
  ec2             = "arn:${local.partition}:ec2:${local.region}"
  profile         = "arn:${local.partition}:iam::${local.account}:instance-profile/*"
  node_role       = "arn:${local.partition}:iam::${local.account}:role/${var.name}-node-karpenter"
  profile_is_ours = { StringEquals = { "aws:ResourceTag/kubernetes.io/cluster/${var.name}" = "owned" } }

  karpenter_policy = {
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "Look"
        Effect = "Allow"
        Action = [
          "ec2:DescribeCapacityReservations", "ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeInstanceStatus",
          "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeInstanceTypes", "ec2:DescribeLaunchTemplates", "ec2:DescribePlacementGroups",
          "ec2:DescribeSecurityGroups", "ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets",
          "pricing:GetProducts", "iam:ListInstanceProfiles",
        ]
        Resource = "*"
      },
      {
        Sid      = "NodeImages"
        Effect   = "Allow"
        Action   = "ssm:GetParameter"
        Resource = "arn:${local.partition}:ssm:${local.region}::parameter/aws/service/*"
      },
      {
        Sid    = "StartWith"
        Effect = "Allow"
        Action = ["ec2:RunInstances", "ec2:CreateFleet"]
        Resource = [
          "${local.ec2}::image/*", "${local.ec2}::snapshot/*", "${local.ec2}:*:security-group/*", "${local.ec2}:*:subnet/*",
          "${local.ec2}:*:capacity-reservation/*",
        ]
      },
      {
        Sid       = "StartFromOwnTemplates"
        Effect    = "Allow"
        Action    = ["ec2:RunInstances", "ec2:CreateFleet"]
        Resource  = "${local.ec2}:*:launch-template/*"
        Condition = local.ours
      },
      {
        Sid    = "StartAsOwn"
        Effect = "Allow"
        Action = ["ec2:RunInstances", "ec2:CreateFleet", "ec2:CreateLaunchTemplate"]
        Resource = [
          "${local.ec2}:*:fleet/*", "${local.ec2}:*:instance/*", "${local.ec2}:*:volume/*", "${local.ec2}:*:network-interface/*",
          "${local.ec2}:*:launch-template/*", "${local.ec2}:*:spot-instances-request/*",
        ]
        Condition = local.to_be_ours
      },
      {
        Sid    = "TagAsItStarts"
        Effect = "Allow"
        Action = "ec2:CreateTags"
        Resource = [
          "${local.ec2}:*:fleet/*", "${local.ec2}:*:instance/*", "${local.ec2}:*:volume/*", "${local.ec2}:*:network-interface/*",
          "${local.ec2}:*:launch-template/*", "${local.ec2}:*:spot-instances-request/*",
        ]
        Condition = {
          StringEquals = merge(local.to_be_ours.StringEquals, { "ec2:CreateAction" = ["RunInstances", "CreateFleet", "CreateLaunchTemplate"] })
          StringLike   = local.to_be_ours.StringLike
        }
      },
      {
        Sid      = "NameOwn"
        Effect   = "Allow"
        Action   = "ec2:CreateTags"
        Resource = "${local.ec2}:*:instance/*"
        Condition = merge(local.ours, {
          "ForAllValues:StringEquals" = { "aws:TagKeys" = ["eks:eks-cluster-name", "karpenter.sh/nodeclaim", "Name"] }
        })
      },
      {
        Sid       = "EndOwn"
        Effect    = "Allow"
        Action    = ["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"]
        Resource  = ["${local.ec2}:*:instance/*", "${local.ec2}:*:launch-template/*"]
        Condition = local.ours
      },
      {
        Sid      = "Interruptions"
        Effect   = "Allow"
        Action   = ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"]
        Resource = "arn:${local.partition}:sqs:${local.region}:${local.account}:${local.queue}"
      },
      {
        Sid       = "GiveNodesTheirRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = local.node_role
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid       = "MakeProfiles"
        Effect    = "Allow"
        Action    = ["iam:CreateInstanceProfile", "iam:TagInstanceProfile"]
        Resource  = local.profile
        Condition = { StringEquals = { "aws:RequestTag/kubernetes.io/cluster/${var.name}" = "owned" } }
      },
      {
        Sid       = "ChangeOwnProfiles"
        Effect    = "Allow"
        Action    = ["iam:AddRoleToInstanceProfile", "iam:RemoveRoleFromInstanceProfile", "iam:DeleteInstanceProfile"]
        Resource  = local.profile
        Condition = local.profile_is_ours
      },
      {
        Sid      = "LookAtProfiles"
        Effect   = "Allow"
        Action   = "iam:GetInstanceProfile"
        Resource = local.profile
      },
      {
        Sid      = "LookAtCluster"
        Effect   = "Allow"
        Action   = "eks:DescribeCluster"
        Resource = "arn:${local.partition}:eks:${local.region}:${local.account}:cluster/${var.name}"
      },
    ]
  }
}

resource "aws_iam_role" "karpenter" {
  name = "${var.name}-karpenter"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
}

resource "aws_iam_role_policy" "karpenter" {
  name   = "karpenter"
  role   = aws_iam_role.karpenter.id
  policy = jsonencode(local.karpenter_policy)
}

resource "aws_eks_pod_identity_association" "karpenter" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = "kube-system"
  service_account = "karpenter"
  role_arn        = aws_iam_role.karpenter.arn
}

# Two minutes' notice of a spot instance arrives here; Karpenter then drains the node, and its worker gets SIGTERM.
resource "aws_sqs_queue" "interruptions" {
  name                      = local.queue
  message_retention_seconds = 300
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue_policy" "interruptions" {
  queue_url = aws_sqs_queue.interruptions.url
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Events"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.interruptions.arn
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = aws_sqs_queue.interruptions.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

resource "aws_cloudwatch_event_rule" "interruptions" {
  for_each = {
    spot-notice  = { source = "aws.ec2", type = "EC2 Spot Instance Interruption Warning" }
    rebalance    = { source = "aws.ec2", type = "EC2 Instance Rebalance Recommendation" }
    state-change = { source = "aws.ec2", type = "EC2 Instance State-change Notification" }
    health       = { source = "aws.health", type = "AWS Health Event" }
  }
  name          = "${var.name}-${each.key}"
  event_pattern = jsonencode({ source = [each.value.source], detail-type = [each.value.type] })
}

resource "aws_cloudwatch_event_target" "interruptions" {
  for_each = aws_cloudwatch_event_rule.interruptions
  rule     = each.value.name
  arn      = aws_sqs_queue.interruptions.arn
}

resource "helm_release" "karpenter" {
  name       = "karpenter"
  namespace  = "kube-system"
  repository = "oci://public.ecr.aws/karpenter"
  chart      = "karpenter"
  version    = "1.14.0"
  timeout    = 600
  values = [yamlencode({
    replicas = 2
    settings = {
      clusterName       = var.name
      interruptionQueue = local.queue
    }
    # On the fixed nodes only: it must not remove the node that it runs on.
    affinity = {
      nodeAffinity = {
        requiredDuringSchedulingIgnoredDuringExecution = {
          nodeSelectorTerms = [{ matchExpressions = [{ key = "karpenter.sh/nodepool", operator = "DoesNotExist" }] }]
        }
      }
    }
    controller = { resources = { requests = { cpu = "250m", memory = "512Mi" }, limits = { memory = "1Gi" } } }
  })]
  depends_on = [aws_eks_node_group.fixed, aws_eks_addon.after_nodes, aws_eks_pod_identity_association.karpenter, aws_iam_role_policy.karpenter, aws_sqs_queue.interruptions]
}
