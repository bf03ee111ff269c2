variables {
  storage_class = "darkroom-ssd"
}

mock_provider "helm" {}
mock_provider "kubernetes" {}

run "all_dashboards_and_rules_are_there" {
  command = plan

  assert {
    condition     = toset(output.dashboards) == fileset("../../../dashboards", "*.json") && toset(output.rules) == fileset("../../../alerts", "*.yaml")
    error_message = "each file of infra/dashboards and infra/alerts, and no other"
  }
  assert {
    condition     = alltrue([for name, text in local.dashboards : jsondecode(text).title != ""]) && alltrue([for name, text in local.rules : length(yamldecode(text).groups) > 0])
    error_message = "a dashboard is JSON with a title, rules are groups"
  }
  assert {
    condition     = local.prometheus.serverFiles["prometheus.yml"].rule_files == ["/etc/darkroom/rules/*.yaml"] && local.prometheus.server.extraConfigmapMounts[0].mountPath == "/etc/darkroom/rules"
    error_message = "Prometheus reads the rules from where they are"
  }
  assert {
    condition     = local.grafana.dashboardsConfigMaps.darkroom == "darkroom-dashboards" && contains([for object in local.objects : object.metadata.name], "darkroom-dashboards")
    error_message = "Grafana reads the dashboards from where they are"
  }
}

run "functions_are_scraped_by_their_names" {
  command = plan

  assert {
    condition     = anytrue([for rule in local.scrape[0].relabel_configs : try(rule.target_label, "") == "job" && rule.source_labels == ["__meta_kubernetes_pod_label_app_kubernetes_io_name"]])
    error_message = "the job is the function's name"
  }
  assert {
    condition     = local.scrape[0].relabel_configs[0].action == "keep"
    error_message = "only pods that say so"
  }
}

run "no_password_is_in_values_or_state" {
  command = plan

  assert {
    condition     = local.grafana.admin.existingSecret == "grafana-admin" && !can(local.grafana.adminPassword)
    error_message = "Grafana's password is in a secret of the cluster"
  }
  assert {
    condition     = kubernetes_secret_v1.grafana.data_wo_revision == 1
    error_message = "it is written, not kept"
  }
}

run "traces_go_where_it_is_said" {
  command = plan
  variables { traces_endpoint = "https://tempo.example.com" }

  assert {
    condition     = local.collector.config.exporters.otlphttp.endpoint == "https://tempo.example.com" && local.collector.config.service.pipelines.traces.exporters == ["otlphttp"]
    error_message = "traces are passed on"
  }
}
