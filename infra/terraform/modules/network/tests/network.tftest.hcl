variables {
  name  = "darkroom-test"
  zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
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

run "nodes_are_private_and_s3_is_not_behind_nat" {
  command = plan

  assert {
    condition     = alltrue([for subnet in aws_subnet.public : subnet.map_public_ip_on_launch == false])
    error_message = "no subnet may hand out public addresses"
  }
  assert {
    condition     = length(distinct(concat([for s in aws_subnet.private : s.cidr_block], [for s in aws_subnet.public : s.cidr_block]))) == 6
    error_message = "each subnet has addresses of its own"
  }
  assert {
    condition     = alltrue([for s in aws_subnet.private : s.tags["karpenter.sh/discovery"] == "darkroom-test"])
    error_message = "Karpenter finds private subnets by their tag"
  }
  assert {
    condition     = alltrue([for s in aws_subnet.public : !contains(keys(s.tags), "karpenter.sh/discovery")])
    error_message = "Karpenter must find no public subnet"
  }
  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && aws_vpc_endpoint.s3.service_name == "com.amazonaws.eu-central-1.s3"
    error_message = "S3 is reached by a gateway endpoint"
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1
    error_message = "one NAT gateway unless asked for more"
  }
  assert {
    condition     = length(aws_default_security_group.nothing.ingress) + length(aws_default_security_group.nothing.egress) == 0
    error_message = "the default security group allows nothing"
  }
}

run "a_nat_gateway_in_each_zone" {
  command = plan
  variables { nat = "each-zone" }

  assert {
    condition     = length(aws_nat_gateway.this) == 3
    error_message = "one in each of three zones"
  }
}

run "bad_input_is_refused" {
  command = plan
  variables {
    cidr  = "10.0.0.0/24"
    zones = ["eu-central-1a", "eu-central-1a"]
    nat   = "two"
  }
  expect_failures = [var.cidr, var.zones, var.nat]
}
