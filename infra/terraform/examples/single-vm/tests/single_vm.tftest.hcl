variables {
  region         = "eu-central-1"
  zone           = "eu-central-1a"
  bucket         = "darkroom-test-objects"
  model          = "shapes"
  release        = "darkroom-0.1.0.tar.gz"
  release_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
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
  target = module.bucket.data.aws_caller_identity.this
  values = { account_id = "123456789012" }
}
override_data {
  target = data.aws_ssm_parameter.image
  values = { value = "ami-0123456789abcdef0" }
}
# Known in a plan, so that what depends on it can be asserted.
override_resource {
  target          = aws_ebs_volume.data
  override_during = plan
  values          = { id = "vol-0123456789abcdef0", arn = "arn:aws:ec2:eu-central-1:123456789012:volume/vol-0123456789abcdef0" }
}

run "nothing_comes_in" {
  command = plan

  assert {
    condition     = length(aws_default_security_group.nothing.ingress) == 0 && aws_vpc_security_group_egress_rule.https.from_port == 443 && aws_vpc_security_group_egress_rule.https.to_port == 443
    error_message = "only HTTPS, and only outwards"
  }
  assert {
    condition     = one(aws_instance.this.metadata_options).http_tokens == "required" && one(aws_instance.this.root_block_device).encrypted && aws_ebs_volume.data.encrypted
    error_message = "IMDSv2 and encrypted disks"
  }
  assert {
    condition     = strcontains(local.units["darkroom-gateway.service"], "DARKROOM_HTTP_LISTEN=127.0.0.1:8080")
    error_message = "the gateway, which asks for no key here, listens to the machine only"
  }
}

run "spot_stops_and_hands_over" {
  command = plan

  assert {
    condition     = one(one(aws_instance.this.instance_market_options).spot_options).instance_interruption_behavior == "stop"
    error_message = "a machine that is taken away comes back with its disks"
  }
  assert {
    condition     = local.environment.DARKROOM_SPOT_NOTICES == "ec2" && local.environment.DARKROOM_CAPACITY == "spot"
    error_message = "generate is told of notices and what it runs on"
  }
  assert {
    condition     = tonumber(regex("TimeoutStopSec=([0-9]+)", local.units["darkroom-generate.service"])[0]) >= tonumber(trimsuffix(local.environment.DARKROOM_GRACE, "s")) + 10
    error_message = "systemd waits longer than DARKROOM_GRACE"
  }
  assert {
    condition     = !strcontains(local.units["darkroom-generate.service"], "poweroff") && !strcontains(local.units["darkroom-generate.service"], "IDLE")
    error_message = "it stays on unless asked for"
  }
}

run "on_demand_that_stops_when_idle" {
  command = plan
  variables {
    capacity       = "on-demand"
    stop_when_idle = "30m"
  }

  assert {
    condition     = length(aws_instance.this.instance_market_options) == 0 && local.environment.DARKROOM_SPOT_NOTICES == "off"
    error_message = "no spot, no notices"
  }
  assert {
    condition     = strcontains(local.units["darkroom-generate.service"], "OnSuccess=poweroff.target") && strcontains(local.units["darkroom-generate.service"], "DARKROOM_EXIT_WHEN_IDLE=30m") && aws_instance.this.instance_initiated_shutdown_behavior == "stop"
    error_message = "an idle worker ends, and the machine with it, which is stopped and not thrown away"
  }
}

run "the_machine_makes_itself" {
  command = plan

  assert {
    condition     = startswith(local.cloud_init, "#cloud-config\n") && length(base64gzip(local.cloud_init)) * 3 / 4 < 16384
    error_message = "user data is cloud-config, and within EC2's 16 KiB"
  }
  assert {
    condition     = one([for f in yamldecode(local.cloud_init).write_files : f.content if f.path == "/etc/darkroom/nats.conf"]) == file("../../../../nats/local.conf")
    error_message = "the server's configuration is that of the repository"
  }
  assert {
    condition     = toset([for f in yamldecode(local.cloud_init).write_files : basename(f.path) if startswith(f.path, "/etc/systemd/system/")]) == toset(["nats-server.service", "darkroom-models.service", "darkroom-setup.service", "darkroom-gateway.service", "darkroom-webhook.service", "darkroom-deadletter.service", "darkroom-generate.service"])
    error_message = "a unit for each program"
  }
  assert {
    condition     = strcontains(local.first_start, "sha256sum --check") && strcontains(local.first_start, "nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0")
    error_message = "what is downloaded is compared before it runs, and the disk is the right one"
  }
  assert {
    condition     = strcontains(local.units["darkroom-setup.service"], "setup --model $${DARKROOM_MODEL}")
    error_message = "systemd's variables are left for systemd"
  }
}

run "bad_input_is_refused" {
  command = plan
  variables {
    name           = "Bad Name"
    zone           = "us-east-1a"
    instance_type  = "m7i.large"
    capacity       = "preemptible"
    stop_when_idle = "soon"
    disk_gib       = 1
    release        = "../x"
    release_sha256 = "abc"
    model          = "a/b"
  }
  expect_failures = [var.name, var.zone, var.instance_type, var.capacity, var.stop_when_idle, var.disk_gib, var.release, var.release_sha256, var.model]
}
