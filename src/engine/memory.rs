//! Memory of the device that a model is on: how much is left beside it, and how much stages take at their peak.
//!
//! It decides nothing, and where the system does not tell, nothing is made up. On the CPU it is what Linux says of the
//! process and the machine, on CUDA what the driver says.

use std::path::Path;

use candle_core::Device;

/// The memory of the device that a model is on.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    device: Device,
    /// The model's weights that stay in their files.
    mapped_bytes: u64,
}

/// The highest use of a device's memory since [`DeviceMemory::watch`].
#[derive(Debug)]
pub struct Watch {
    memory: DeviceMemory,
    /// On the CPU: what of the process is in files and may leave memory at any time.
    file_bytes: u64,
}

impl DeviceMemory {
    pub(crate) fn new(device: &Device, mapped_bytes: u64) -> Self {
        Self { device: device.clone(), mapped_bytes }
    }

    /// Bytes that are left for this process beside the model: all of its weights count as taken, also those that nobody has
    /// read from their file yet.
    pub fn left(&self) -> Option<u64> {
        match &self.device {
            Device::Cpu => {
                let available = linux::available(Path::new("/proc"), Path::new("/sys/fs/cgroup"))?;
                Some(available.saturating_sub(self.mapped_bytes))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::free(device),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => None,
            Device::Metal(_) => None,
        }
    }

    /// Bytes in use now, without those of mapped files.
    pub fn used(&self) -> Option<u64> {
        match &self.device {
            Device::Cpu => linux::in_status(&linux::status()?, "RssAnon"),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::used(device),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => None,
            Device::Metal(_) => None,
        }
    }

    /// Gives back what is only kept in case of need, as a GPU's memory is: to whoever found no room, and before a peak is watched.
    pub fn give_back(&self) {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.device {
            cuda::give_back_graphs(device);
            cuda::give_back_tensors(device);
        }
    }

    /// Watches the use from now on. There is one peak for the whole process: a second watch ends the first.
    pub fn watch(&self) -> Option<Watch> {
        let file_bytes = match &self.device {
            Device::Cpu => linux::forget_peak()?,
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::forget_peak(device)?,
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return None,
            Device::Metal(_) => return None,
        };
        Some(Watch { memory: self.clone(), file_bytes })
    }
}

impl Watch {
    /// The most bytes that were in use at once since, without those of mapped files. Those that were read for the first time
    /// since count.
    pub fn peak(&self) -> Option<u64> {
        match &self.memory.device {
            Device::Cpu => Some(linux::in_status(&linux::status()?, "VmHWM")?.saturating_sub(self.file_bytes)),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::peak(device),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => None,
            Device::Metal(_) => None,
        }
    }
}

/// What Linux tells in files.
mod linux {
    use std::path::Path;

    pub(super) fn status() -> Option<String> {
        std::fs::read_to_string("/proc/self/status").ok()
    }

    /// Bytes of `field` in files such as `/proc/self/status` and `/proc/meminfo`, whose lines are `<field>: <number> kB`.
    pub(super) fn in_status(text: &str, field: &str) -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        kibibytes.checked_mul(1024)
    }

    /// Makes the present use the peak; bytes of it that are files'.
    pub(super) fn forget_peak() -> Option<u64> {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
        let status = status()?;
        Some(in_status(&status, "RssFile")? + in_status(&status, "RssShmem")?)
    }

    /// Bytes that the machine has left, and the control groups of this process.
    pub(super) fn available(proc: &Path, groups: &Path) -> Option<u64> {
        let machine = in_status(&std::fs::read_to_string(proc.join("meminfo")).ok()?, "MemAvailable")?;
        let memberships = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        // Version 2 has one hierarchy, numbered 0.
        let own = memberships.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        // Every group above counts too. In a container the path may be the host's, and only the root is there.
        let rooms = Path::new(own).ancestors().filter_map(|group| room(&groups.join(group)));
        Some(rooms.fold(machine, u64::min))
    }

    /// Bytes that `group` has left, if it has a limit.
    fn room(group: &Path) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limit = number("memory.max")?;
        // What it read from files and has not used for a while goes when there is need.
        let stat = read("memory.stat").unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok());
        let taken = number("memory.current")?.saturating_sub(inactive.unwrap_or(0));
        Some(limit.saturating_sub(taken))
    }
}

/// What the driver of CUDA tells. Tensors lie in the device's pool, of which only its own counters know what is used and was; what
/// recorded passes need lies in another, which keeps it between two of them, and gives it back only when it is told to.
#[cfg(feature = "cuda")]
pub(super) mod cuda {
    use candle_core::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::sys::{
        CUgraphMem_attribute, CUmemPool_attribute, CUmemoryPool, cuDeviceGetGraphMemAttribute, cuDeviceGraphMemTrim,
        cuMemPoolGetAttribute, cuMemPoolSetAttribute, cuMemPoolTrimTo,
    };
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};

    /// What the device has, and what the pool keeps.
    pub(super) fn free(device: &CudaDevice) -> Option<u64> {
        let stream = device.cuda_stream();
        stream.context().synchronize().ok()?;
        let (free, _) = stream.context().mem_get_info().ok()?;
        let reserved = read(device, CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT).unwrap_or(0);
        let kept = reserved.saturating_sub(used(device).unwrap_or(reserved));
        Some(u64::try_from(free).ok()? + kept + of_graphs(device).unwrap_or(0))
    }

    pub(super) fn used(device: &CudaDevice) -> Option<u64> {
        read(device, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    pub(super) fn peak(device: &CudaDevice) -> Option<u64> {
        let tensors = read(device, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        Some(tensors + of_graphs(device).unwrap_or(0))
    }

    #[expect(unsafe_code, reason = "cudarc has no safe call for the memory of graphs")]
    fn of_graphs(device: &CudaDevice) -> Option<u64> {
        let mut bytes = 0_u64;
        let attribute = CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
        let ordinal = device.cuda_stream().context().cu_device();
        // SAFETY: the device is the one that the context was opened on, and the attribute is a 64-bit number.
        let got = unsafe { cuDeviceGetGraphMemAttribute(ordinal, attribute, (&raw mut bytes).cast()) };
        got.result().ok().map(|()| bytes)
    }

    /// Gives back what recorded passes needed; they get it again when they are launched.
    #[expect(unsafe_code, reason = "cudarc has no safe call for the memory of graphs")]
    pub(super) fn give_back_graphs(device: &CudaDevice) {
        let stream = device.cuda_stream();
        // SAFETY: as in `of_graphs`. What is in use stays.
        let trimmed =
            stream.synchronize().and_then(|()| unsafe { cuDeviceGraphMemTrim(stream.context().cu_device()) }.result());
        // The next try to allocate says what is left.
        let _ = trimmed;
    }

    /// Gives back what the pool keeps of freed tensors.
    #[expect(unsafe_code, reason = "cudarc has no safe call for pools")]
    pub(crate) fn give_back_tensors(device: &CudaDevice) {
        if let Some(pool) = pool(device.cuda_stream().context()) {
            // SAFETY: as in `read`. What is in use stays.
            let trimmed = unsafe { cuMemPoolTrimTo(pool, 0) };
            let _ = trimmed.result();
        }
    }

    /// Makes the present use the peak; none of it are files'.
    pub(super) fn forget_peak(device: &CudaDevice) -> Option<u64> {
        write(device, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0).map(|()| 0)
    }

    /// Lets the pool keep what tensors leave for those that come. By itself it gives that back whenever somebody waits for the
    /// device, as after every step, and asks for it again.
    pub(crate) fn keep_freed(device: &CudaDevice) {
        // Without it all is as right, only slower.
        let _ = write(device, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
    }

    #[expect(unsafe_code, reason = "cudarc has no safe call for pools")]
    fn write(device: &CudaDevice, attribute: CUmemPool_attribute, mut bytes: u64) -> Option<()> {
        let pool = pool(device.cuda_stream().context())?;
        // SAFETY: as in `read`.
        let set = unsafe { cuMemPoolSetAttribute(pool, attribute, (&raw mut bytes).cast()) };
        set.result().ok()
    }

    #[expect(unsafe_code, reason = "cudarc has no safe call for pools")]
    fn read(device: &CudaDevice, attribute: CUmemPool_attribute) -> Option<u64> {
        let pool = pool(device.cuda_stream().context())?;
        let mut bytes = 0_u64;
        // SAFETY: the pool is the device's own, which lives as long as the process, and all attributes that are asked for are
        // 64-bit numbers.
        let got = unsafe { cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) };
        got.result().ok().map(|()| bytes)
    }

    /// The pool of tensors, when the device is done with all it was given; none where tensors lie in no pool.
    #[expect(unsafe_code, reason = "cudarc has no safe call for pools")]
    fn pool(context: &CudaContext) -> Option<CUmemoryPool> {
        context.synchronize().ok()?;
        // SAFETY: the device is the one that the context was opened on.
        context.has_async_alloc().then(|| unsafe { result::device::get_mem_pool(context.cu_device()) }.ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn fields_are_read_by_their_whole_name_in_bytes() {
        let text = "VmHWM:\t   46520 kB\nRssAnon:\t  120 kB\nRssFile:\t 7 pages\nHugetlbPages:\t       0 kB\n";
        assert_eq!(linux::in_status(text, "VmHWM"), Some(46520 * 1024));
        assert_eq!(linux::in_status(text, "RssAnon"), Some(120 * 1024));
        for unknown in ["Rss", "RssFile", "RssShmem", ""] {
            assert_eq!(linux::in_status(text, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_left_is_bounded_by_every_control_group_above() {
        let root = tempfile::tempdir().unwrap();
        let (proc, groups) = (root.path().join("proc"), root.path().join("cgroup"));
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(linux::available(&proc, &groups), None, "there is no such system");
        write(&proc.join("meminfo"), "MemTotal: 99 kB\nMemAvailable: 8192 kB\n");
        assert_eq!(linux::available(&proc, &groups), Some(8 * MIB), "no control groups");
        write(&proc.join("self/cgroup"), "4:memory:/old\n0::/pod/worker\n");
        assert_eq!(linux::available(&proc, &groups), Some(8 * MIB), "none of version 2");
        write(&groups.join("pod/worker/memory.max"), "max\n");
        write(&groups.join("pod/worker/memory.current"), "4096\n");
        assert_eq!(linux::available(&proc, &groups), Some(8 * MIB), "no limit");
        write(&groups.join("pod/memory.max"), "6291456\n");
        write(&groups.join("pod/memory.current"), "4194304\n");
        assert_eq!(linux::available(&proc, &groups), Some(2 * MIB), "the group above");
        write(&groups.join("pod/memory.stat"), "anon 5\nactive_file 4194304\ninactive_file 1048576\n");
        assert_eq!(linux::available(&proc, &groups), Some(3 * MIB), "files that nobody reads");
        write(&groups.join("memory.max"), "1048576\n");
        write(&groups.join("memory.current"), "2097152\n");
        assert_eq!(linux::available(&proc, &groups), Some(0), "a container's own root");
    }

    #[test]
    fn weights_in_mapped_files_are_never_left() {
        let left = |mapped_bytes| DeviceMemory::new(&Device::Cpu, mapped_bytes).left();
        assert_eq!(left(u64::MAX).unwrap_or(0), 0);
        assert_eq!(left(0).is_some(), cfg!(target_os = "linux"));
    }
}
