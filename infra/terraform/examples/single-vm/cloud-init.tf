# What the machine does when it starts for the first time: a user, a disk, the programs, their configuration, their units.

locals {
  repo   = "${path.module}/../../../.."
  prices = "${local.repo}/infra/prices.toml"

  environment = merge({
    NATS_URL = "nats://127.0.0.1:4222"
    # local.conf, for one machine, asks these of its environment.
    DARKROOM_NATS_PORT           = "4222"
    DARKROOM_NATS_WEBSOCKET_PORT = "4223"
    DARKROOM_NATS_STORE          = "/var/lib/darkroom/nats"
    DARKROOM_STORE               = module.bucket.store
    AWS_REGION                   = var.region
    DARKROOM_URL_EXPIRES         = "1h"
    DARKROOM_MODEL               = "/var/lib/darkroom/models/${var.model}"
    DARKROOM_LORAS               = "/var/cache/darkroom/loras"
    DARKROOM_CAPACITY            = var.capacity
    DARKROOM_INSTANCE_TYPE       = var.instance_type
    # A worker that ends by itself switches the machine off where it is to stop when idle, and EC2 does not bring back what was
    # switched off. There it is told by the system, when EC2 stops the machine.
    DARKROOM_SPOT_NOTICES = var.capacity == "spot" && var.stop_when_idle == null ? "ec2" : "off"
    DARKROOM_GRACE        = "75s"
  }, fileexists(local.prices) ? { DARKROOM_PRICES = "/etc/darkroom/prices.toml" } : {})

  # Who serves beside generate, and what each is told besides.
  functions = {
    gateway    = { after = "", environment = { DARKROOM_HTTP_LISTEN = "127.0.0.1:8080", DARKROOM_OPEN_TENANT = var.tenant, DARKROOM_METRICS_LISTEN = "127.0.0.1:9464" } }
    webhook    = { after = "", environment = { DARKROOM_METRICS_LISTEN = "127.0.0.1:9465" } }
    deadletter = { after = "", environment = { DARKROOM_METRICS_LISTEN = "127.0.0.1:9466" } }
  }

  units = merge(
    {
      "nats-server.service"     = templatefile("${path.module}/units/nats-server.service", {})
      "darkroom-models.service" = templatefile("${path.module}/units/darkroom-models.service", { source = "${module.bucket.store}/models/${var.model}" })
      "darkroom-setup.service"  = templatefile("${path.module}/units/darkroom-setup.service", {})
      "darkroom-generate.service" = templatefile("${path.module}/units/darkroom-generate.service", {
        # It ends when it was idle so long, and with it the machine, which then costs its disks only.
        idle = var.stop_when_idle == null ? "" : "Environment=DARKROOM_EXIT_WHEN_IDLE=${var.stop_when_idle}"
        then = var.stop_when_idle == null ? "" : "OnSuccess=poweroff.target"
      })
    },
    { for name, function in local.functions : "darkroom-${name}.service" => templatefile("${path.module}/units/function.service", {
      name        = name
      environment = join("\n", [for key, value in function.environment : "Environment=${key}=${value}"])
    }) },
  )

  cloud_init = "#cloud-config\n${yamlencode({
    users = ["default", { name = "darkroom", system = true, no_create_home = true, shell = "/usr/sbin/nologin" }]
    write_files = concat(
      [
        { path = "/etc/darkroom/environment", permissions = "0644", content = join("", [for key, value in local.environment : "${key}=${value}\n"]) },
        { path = "/etc/darkroom/nats.conf", permissions = "0644", content = file("${local.repo}/nats/local.conf") },
        { path = "/etc/darkroom/release.sha256", permissions = "0644", content = "${var.release_sha256}  /opt/darkroom/release.tar.gz\n" },
      ],
      [for text in fileexists(local.prices) ? [file(local.prices)] : [] : { path = "/etc/darkroom/prices.toml", permissions = "0644", content = text }],
      [for name, text in local.units : { path = "/etc/systemd/system/${name}", permissions = "0644", content = text }],
    )
    # The disk is attached after the machine has started.
    bootcmd = [["mkdir", "-p", "/var/lib/darkroom", "/opt/darkroom"]]
    runcmd = [
      ["sh", "-euc", local.first_start],
    ]
  })}"

  first_start = templatefile("${path.module}/first-start.sh", {
    volume  = replace(aws_ebs_volume.data.id, "-", "")
    release = "${module.bucket.store}/releases/${var.release}"
    units   = join(" ", keys(local.units))
  })
}
