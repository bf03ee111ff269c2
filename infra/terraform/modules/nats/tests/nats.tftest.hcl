variables {
  accounts_dir  = "../../fixtures/accounts"
  storage_class = "darkroom-ssd"
}

mock_provider "helm" {}
mock_provider "kubernetes" {}

run "three_servers_that_lose_nothing" {
  command = plan

  assert {
    condition     = local.values.config.cluster.enabled && local.values.config.cluster.replicas == 3
    error_message = "three servers"
  }
  assert {
    condition     = local.values.config.jetstream.merge.sync_interval == "always" && local.values.config.jetstream.fileStore.pvc.storageClassName == "darkroom-ssd"
    error_message = "what was confirmed is on an SSD"
  }
  assert {
    condition     = local.volume_gib * pow(2, 30) >= 2 * local.file_bytes && length(local.streams) == length(fileset(local.nats, "streams/*.json")) + length(fileset(local.nats, "buckets/*.json"))
    error_message = "the volume holds all that the streams in nats/ may"
  }
  assert {
    condition     = alltrue([for key in ["topology.kubernetes.io/zone", "kubernetes.io/hostname"] : local.values.podTemplate.topologySpreadConstraints[key].whenUnsatisfiable == "DoNotSchedule"])
    error_message = "each server has a zone and a node of its own"
  }
  assert {
    condition     = local.values.podDisruptionBudget.enabled && local.values.podDisruptionBudget.merge.spec.maxUnavailable == 1
    error_message = "never two servers are taken away at once"
  }
  assert {
    condition     = helm_release.nats.version == "2.14.2" && helm_release.nats.chart == "nats" && yamldecode(helm_release.nats.values[0]).container.image.tag == "2.15.1-alpine"
    error_message = "chart and server are pinned"
  }
}

run "accounts_are_those_of_the_repository" {
  command = plan

  assert {
    condition     = local.values.configMap.merge.data["accounts.conf"] == file("../../../../nats/accounts.conf") && local.values.config.merge["00$include"] == "accounts.conf"
    error_message = "accounts.conf as it is, included first"
  }
  assert {
    condition     = local.values.config.merge.max_payload == "<< 1MB >>" && local.values.config.merge.ping_interval == "10s" && local.values.config.merge.ping_max == "<< 2 >>" && local.values.config.merge.write_deadline == "5s"
    error_message = "limits are those of nats/server.conf, in the form that the chart writes as they are"
  }
  assert {
    condition     = !anytrue([for text in values(local.values.configMap.merge.data) : can(regex("\\bS[UA][A-Z2-7]{56}\\b", text))])
    error_message = "no seed may be in the configuration"
  }
}

run "everything_is_encrypted" {
  command = plan

  assert {
    condition     = local.values.config.nats.tls.enabled && local.values.config.cluster.tls.enabled && local.values.config.nats.tls.merge.min_version == "1.3"
    error_message = "TLS 1.3 for clients, TLS between servers"
  }
  assert {
    condition     = one([for object in local.objects : object.spec.dnsNames if object.kind == "Certificate" && object.metadata.name == "nats"]) == local.names && contains(local.names, "nats.nats.svc.cluster.local")
    error_message = "the certificate names what clients connect to"
  }
  assert {
    condition     = trimsuffix(trimprefix(output.url, "tls://"), ":4222") == "nats.nats.svc.cluster.local"
    error_message = "clients are told to use TLS"
  }
}

run "monitoring_is_closed_by_policy" {
  command = plan

  assert {
    condition     = !anytrue(flatten([for object in local.objects : [for rule in try(object.spec.ingress, []) : [for port in rule.ports : port.port == 8222]] if object.kind == "NetworkPolicy"]))
    error_message = "nobody may read the monitoring pages"
  }
  assert {
    condition     = anytrue([for object in local.objects : object.kind == "NetworkPolicy" && length(try(object.spec.podSelector, {})) == 0 && try(length(object.spec.ingress), 0) == 0 && contains(try(object.spec.policyTypes, []), "Ingress")])
    error_message = "what no policy allows is denied"
  }
  assert {
    condition     = alltrue(flatten([for object in local.objects : [for rule in try(object.spec.ingress, []) : length(rule.from) > 0] if object.kind == "NetworkPolicy"]))
    error_message = "a rule without `from` would let everybody in"
  }
}

run "monitoring_is_opened_for_whom_it_is_said" {
  command = plan
  variables { monitoring_namespaces = ["keda"] }

  assert {
    condition     = one([for object in local.objects : object.spec.ingress[0].from[0].namespaceSelector.matchLabels["kubernetes.io/metadata.name"] if object.kind == "NetworkPolicy" && object.metadata.name == "monitoring"]) == "keda"
    error_message = "for KEDA's namespace only"
  }
}

run "a_volume_that_is_too_small_is_refused" {
  command = plan
  variables { volume_gib = 1 }
  expect_failures = [helm_release.nats]
}

run "bad_input_is_refused" {
  command = plan
  variables {
    accounts_dir      = "tests/none"
    image_tag         = "2.10.4"
    websocket_origins = ["*"]
  }
  expect_failures = [var.accounts_dir, var.image_tag, var.websocket_origins]
}
