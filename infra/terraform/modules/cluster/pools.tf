# Which nodes there may be: CPU nodes for what always runs, GPU nodes of spot and of on-demand capacity, none of them until a worker
# waits for one. And the storage class for disks that outlive pods.

locals {
  node_class = { for name, disk_gib in merge({ cpu = 50 }, { for capacity, pool in var.gpu_pools : "gpu-${capacity}" => pool.disk_gib }) : name => {
    apiVersion = "karpenter.k8s.aws/v1"
    kind       = "EC2NodeClass"
    metadata   = { name = "darkroom-${name}" }
    spec = {
      role                       = "${var.name}-node-karpenter"
      amiSelectorTerms           = [{ alias = var.node_image }]
      subnetSelectorTerms        = [{ tags = { "karpenter.sh/discovery" = var.name } }]
      securityGroupSelectorTerms = [{ tags = { "karpenter.sh/discovery" = var.name } }]
      # Where an instance has SSDs of its own, pods' disks are there, and with them the models' cache.
      instanceStorePolicy = "RAID0"
      blockDeviceMappings = [{
        deviceName = "/dev/xvda"
        ebs        = { volumeSize = "${disk_gib}Gi", volumeType = "gp3", encrypted = true, deleteOnTermination = true, throughput = 250 }
      }]
      # One hop: a pod cannot ask for the node's credentials.
      metadataOptions = { httpEndpoint = "enabled", httpTokens = "required", httpPutResponseHopLimit = 1 }
    }
  } }

  cpu_pool = {
    apiVersion = "karpenter.sh/v1"
    kind       = "NodePool"
    metadata   = { name = "darkroom-cpu" }
    spec = {
      template = {
        spec = {
          nodeClassRef = { group = "karpenter.k8s.aws", kind = "EC2NodeClass", name = "darkroom-cpu" }
          requirements = [
            { key = "karpenter.sh/capacity-type", operator = "In", values = ["on-demand"] },
            { key = "kubernetes.io/arch", operator = "In", values = ["amd64"] },
            { key = "karpenter.k8s.aws/instance-family", operator = "In", values = var.cpu_pool.families },
          ]
          expireAfter = "720h"
        }
      }
      limits = { cpu = tostring(var.cpu_pool.cpus_max) }
      disruption = {
        consolidationPolicy = "WhenEmptyOrUnderutilized"
        consolidateAfter    = "5m"
        # One at a time, so that never two NATS servers move.
        budgets = [{ nodes = "1" }]
      }
    }
  }

  gpu_pool = { for capacity, pool in var.gpu_pools : capacity => {
    apiVersion = "karpenter.sh/v1"
    kind       = "NodePool"
    metadata   = { name = "darkroom-gpu-${capacity}" }
    spec = {
      template = {
        metadata = { labels = { "nvidia.com/gpu.present" = "true" } }
        spec = {
          nodeClassRef = { group = "karpenter.k8s.aws", kind = "EC2NodeClass", name = "darkroom-gpu-${capacity}" }
          requirements = [
            { key = "karpenter.sh/capacity-type", operator = "In", values = [capacity] },
            { key = "kubernetes.io/arch", operator = "In", values = ["amd64"] },
            { key = "karpenter.k8s.aws/instance-family", operator = "In", values = pool.families },
          ]
          # Nothing comes here but what says that it wants a GPU.
          taints      = [{ key = "nvidia.com/gpu", value = "present", effect = "NoSchedule" }]
          expireAfter = "168h"
          # A node that is to go waits no longer than this for a worker that will not end.
          terminationGracePeriod = "30m"
        }
      }
      limits = { "nvidia.com/gpu" = tostring(pool.gpus_max) }
      disruption = {
        # A node is never taken from under a worker to save money: it goes when it is empty.
        consolidationPolicy = "WhenEmpty"
        consolidateAfter    = pool.empty_for
        budgets             = [{ nodes = "100%", reasons = ["Empty"] }, { nodes = "1", reasons = ["Drifted"] }]
      }
    }
  } }

  storage_class = {
    apiVersion           = "storage.k8s.io/v1"
    kind                 = "StorageClass"
    metadata             = { name = "darkroom-ssd" }
    provisioner          = "ebs.csi.aws.com"
    volumeBindingMode    = "WaitForFirstConsumer"
    allowVolumeExpansion = true
    # Streams are not thrown away because a release was.
    reclaimPolicy = "Retain"
    parameters    = { type = "gp3", encrypted = "true" }
  }
}

resource "helm_release" "pools" {
  name       = "darkroom-pools"
  namespace  = "kube-system"
  chart      = "${path.module}/../../charts/objects"
  values     = [yamlencode({ objects = concat([local.storage_class], values(local.node_class), [local.cpu_pool], values(local.gpu_pool)) })]
  depends_on = [helm_release.karpenter, aws_eks_access_entry.karpenter_node, aws_ec2_tag.nodes_security_group]
}

resource "helm_release" "nvidia_device_plugin" {
  name       = "nvidia-device-plugin"
  namespace  = "kube-system"
  repository = "https://nvidia.github.io/k8s-device-plugin"
  chart      = "nvidia-device-plugin"
  version    = "0.20.0"
  # By its own rules it looks for the label of our GPU pools and tolerates their taint.
  values     = [yamlencode({ resources = { requests = { cpu = "10m", memory = "64Mi" }, limits = { memory = "256Mi" } } })]
  depends_on = [helm_release.pools]
}
