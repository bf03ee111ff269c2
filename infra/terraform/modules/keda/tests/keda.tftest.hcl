mock_provider "helm" {}
mock_provider "kubernetes" {}

run "pinned_and_never_alone" {
  command = plan

  assert {
    condition     = helm_release.keda.version == "2.20.2"
    error_message = "the version is pinned"
  }
  assert {
    condition     = yamldecode(helm_release.keda.values[0]).operator.replicaCount == 2 && yamldecode(helm_release.keda.values[0]).podDisruptionBudget.operator.minAvailable == 1
    error_message = "one operator is there while the other moves"
  }
  assert {
    condition     = kubernetes_namespace_v1.this.metadata[0].labels["pod-security.kubernetes.io/enforce"] == "restricted"
    error_message = "pods of KEDA are restricted"
  }
}

run "versions_that_scale_to_the_maximum_by_mistake_are_refused" {
  command = plan
  variables { chart_version = "2.19.0" }
  expect_failures = [var.chart_version]
}
