# Darkroom on one machine with a GPU: the cheapest that draws. NATS, the functions and one model run under systemd; nothing listens
# to the outside, and whoever uses it comes by Session Manager.
#
# It is not there when its machine is not: one NATS server, one disk. examples/aws is for that.

terraform {
  required_version = ">= 1.11"
  required_providers {
    aws = { source = "hashicorp/aws", version = "~> 6.40" }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = var.name }
  }
}

module "bucket" {
  source          = "../../modules/bucket"
  name            = var.bucket
  tenants         = { (var.tenant) = { keep_images_days = var.keep_images_days } }
  destroy_objects = var.destroy_objects
}

# A network with one public subnet: a NAT gateway would cost more than a small machine.
resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:One machine that nobody can connect to; who it connects to is in its own logs
  cidr_block           = "10.41.0.0/24"
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_default_security_group" "nothing" {
  vpc_id  = aws_vpc.this.id
  ingress = []
  egress  = []
}

resource "aws_subnet" "this" {
  vpc_id                  = aws_vpc.this.id
  cidr_block              = "10.41.0.0/26"
  availability_zone       = var.zone
  map_public_ip_on_launch = false
  tags                    = { Name = var.name }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
}

resource "aws_route" "out" {
  route_table_id         = aws_route_table.this.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "this" {
  subnet_id      = aws_subnet.this.id
  route_table_id = aws_route_table.this.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.this.id]
}

# Nothing comes in. What goes out: HTTPS for S3, Systems Manager and webhooks.
resource "aws_security_group" "this" {
  name        = var.name
  description = "Darkroom on one machine: nothing comes in"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.this.id
  description       = "S3, Systems Manager, webhooks"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_iam_role" "this" {
  name = var.name
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

# One machine has one role: that of generate, which may all that the gateway may.
resource "aws_iam_role_policy" "objects" {
  name   = "objects"
  role   = aws_iam_role.this.id
  policy = module.bucket.object_policies["generate"]
}

resource "aws_iam_role_policy" "key" {
  name   = "key"
  role   = aws_iam_role.this.id
  policy = module.bucket.key_policy
}

resource "aws_iam_role_policy_attachment" "session_manager" {
  role       = aws_iam_role.this.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "this" {
  name = var.name
  role = aws_iam_role.this.name
}

# Ubuntu with NVIDIA's driver and the AWS command line.
data "aws_ssm_parameter" "image" {
  name = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
}

resource "aws_instance" "this" {
  #checkov:skip=CKV_AWS_88:Its public address is for what it asks for, without a NAT gateway; its security group lets nothing in
  ami                                  = nonsensitive(data.aws_ssm_parameter.image.value)
  instance_type                        = var.instance_type
  subnet_id                            = aws_subnet.this.id
  vpc_security_group_ids               = [aws_security_group.this.id]
  iam_instance_profile                 = aws_iam_instance_profile.this.name
  associate_public_ip_address          = true
  ebs_optimized                        = true
  monitoring                           = true
  instance_initiated_shutdown_behavior = "stop"
  user_data_base64                     = base64gzip(local.cloud_init)
  # A change of the programs or units is a new machine; streams and models are on the other disk.
  user_data_replace_on_change = true
  tags                        = { Name = var.name }

  dynamic "instance_market_options" {
    for_each = var.capacity == "spot" ? [1] : []
    content {
      market_type = "spot"
      spot_options {
        # Taken away, it stops and comes back with its disks.
        spot_instance_type             = "persistent"
        instance_interruption_behavior = "stop"
      }
    }
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = 100
    encrypted   = true
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  lifecycle {
    # A newer image is no reason for another machine.
    ignore_changes = [ami]
  }
  depends_on = [aws_route.out, aws_iam_role_policy.objects, aws_iam_role_policy.key]
}

# Streams and models: outlives the machine.
resource "aws_ebs_volume" "data" {
  #checkov:skip=CKV_AWS_189:Encrypted with the account's key for disks; a key of its own would be paid each month
  availability_zone = var.zone
  size              = var.disk_gib
  type              = "gp3"
  encrypted         = true
  tags              = { Name = "${var.name}-data" }
}

resource "aws_volume_attachment" "data" {
  device_name                    = "/dev/sdf"
  volume_id                      = aws_ebs_volume.data.id
  instance_id                    = aws_instance.this.id
  stop_instance_before_detaching = true
}
