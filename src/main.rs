//! The command line `darkroom`. Everything it does is in `cli`, one file per group of commands.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
