//! The `vmm` command.

#[global_allocator]
static HEAP: vmm::heap::Heap = vmm::heap::Heap;

fn main() -> std::process::ExitCode {
    vmm::heap::make_stacks_small();
    vmm::cli::main()
}
