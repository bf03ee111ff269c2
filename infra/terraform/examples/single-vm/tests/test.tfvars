# What the check plans offline.
region         = "eu-central-1"
zone           = "eu-central-1a"
bucket         = "darkroom-test-objects"
model          = "shapes"
release        = "darkroom-0.1.0.tar.gz"
release_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
