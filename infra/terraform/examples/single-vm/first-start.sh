# Run once, by cloud-init. It waits for the disk, which Terraform attaches after the machine has started.
disk=/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${volume}
i=0
until [ -e "$disk" ]; do
    i=$((i + 1))
    [ "$i" -lt 120 ] || { echo 'the disk was not attached within 10 minutes' >&2; exit 1; }
    sleep 5
done
# One that has a file system is from a machine before this one.
blkid "$disk" >/dev/null || mkfs.ext4 -q "$disk"
echo "$disk /var/lib/darkroom ext4 defaults,nofail,x-systemd.device-timeout=120 0 2" >> /etc/fstab
mount /var/lib/darkroom
mkdir -p /var/lib/darkroom/nats /var/lib/darkroom/models
chown -R darkroom:darkroom /var/lib/darkroom
aws s3 cp --only-show-errors ${release} /opt/darkroom/release.tar.gz
sha256sum --check --strict /etc/darkroom/release.sha256
mkdir -p /opt/darkroom/bin
tar --extract --gzip --no-same-owner --file /opt/darkroom/release.tar.gz --directory /opt/darkroom/bin
systemctl daemon-reload
systemctl enable --now ${units}
