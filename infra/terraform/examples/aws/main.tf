# Darkroom on AWS: a network, EKS, NATS, and functions that cost nothing while nobody asks for images, but for what must always run.

terraform {
  required_version = ">= 1.11"
  required_providers {
    aws        = { source = "hashicorp/aws", version = "~> 6.40" }
    helm       = { source = "hashicorp/helm", version = "~> 3.0" }
    kubernetes = { source = "hashicorp/kubernetes", version = "~> 2.38" }
  }
  # Nobody but one person on one machine may use this without a backend that locks, as
  # backend "s3" { bucket = "…", key = "darkroom", region = "…", use_lockfile = true }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = var.name }
  }
}

# Whoever runs Terraform shows who it is to the cluster by the AWS command line, with a token of minutes.
locals {
  login = { api_version = "client.authentication.k8s.io/v1", command = "aws", args = ["eks", "get-token", "--cluster-name", var.name, "--region", var.region] }
}

provider "kubernetes" {
  host                   = module.cluster.endpoint
  cluster_ca_certificate = module.cluster.certificate_authority
  exec {
    api_version = local.login.api_version
    command     = local.login.command
    args        = local.login.args
  }
}

provider "helm" {
  kubernetes = {
    host                   = module.cluster.endpoint
    cluster_ca_certificate = module.cluster.certificate_authority
    exec                   = local.login
  }
}

module "network" {
  source = "../../modules/network"
  name   = var.name
  cidr   = var.cidr
  zones  = var.zones
  nat    = var.nat
}

module "cluster" {
  source             = "../../modules/cluster"
  name               = var.name
  kubernetes_version = var.kubernetes_version
  subnet_ids         = module.network.private_subnet_ids
  admin_cidrs        = var.admin_cidrs
  admin_role_arns    = var.admin_role_arns
  gpu_pools          = var.gpu_pools
  node_image         = var.node_image
}

module "bucket" {
  source          = "../../modules/bucket"
  name            = var.bucket
  cluster_name    = module.cluster.name
  tenants         = var.tenants
  destroy_objects = var.destroy_objects
}

module "nats" {
  source        = "../../modules/nats"
  accounts_dir  = var.accounts_dir
  storage_class = module.cluster.storage_class
  # Charts wait for pods, and pods for nodes.
  depends_on = [module.cluster]
}

module "keda" {
  source     = "../../modules/keda"
  depends_on = [module.cluster]
}

module "observability" {
  source          = "../../modules/observability"
  storage_class   = module.cluster.storage_class
  traces_endpoint = var.traces_endpoint
  depends_on      = [module.cluster]
}

module "darkroom" {
  source                  = "../../modules/darkroom"
  name                    = var.name
  image_registry          = var.image_registry
  image_tag               = var.image_tag
  accounts_dir            = var.accounts_dir
  keys_revision           = var.keys_revision
  nats                    = { url = module.nats.url, replicas = module.nats.replicas, issuer = module.nats.issuer, namespace = module.nats.namespace }
  bucket                  = { name = module.bucket.name, region = var.region }
  keda_namespace          = module.keda.namespace
  observability_namespace = module.observability.namespace
  otlp_endpoint           = module.observability.otlp_endpoint
  models                  = var.models
  gateway                 = var.gateway
  # A role that has not yet its rights would let the first worker fail.
  depends_on = [module.bucket]
}
