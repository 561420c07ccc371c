//! The life of the process: command line, logging, configuration, runtime, one command, exit code. Nothing else.

use std::process::ExitCode;
use std::thread::available_parallelism;

use forebay::activation::Passed;
use forebay::cli::{Cli, Command};
use forebay::config::{self, Loaded, RealEnvironment, Request};
use forebay::exit::{self, Exit};
use forebay::{commands, logging};

fn main() -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    logging::start(cli.log_format(), cli.log_level());
    exit::on_any_panic();

    // Before there are threads: it takes what it finds out of the environment.
    let passed = if matches!(cli.command, Command::Run(_)) { Passed::take() } else { Ok(Passed::default()) };
    let passed = match passed {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("forebay: {error}");
            return Exit::Configuration.into();
        }
    };

    let request = cli.config_request();
    let loaded = match request.as_ref().map(|request| config::load(&RealEnvironment, request)).transpose() {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("forebay: {problems}");
            return Exit::Configuration.into();
        }
    };
    for note in loaded.iter().flat_map(|loaded| &loaded.notes) {
        tracing::info!("{note}");
    }

    let workers = available_parallelism().map_or(1, usize::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("forebay: cannot start threads and timers: {error}");
            return Exit::Failed.into();
        }
    };
    let code = runtime.block_on(dispatch(cli.command, request, loaded, passed));
    // A read of stdin cannot be cancelled; whatever had to become durable is so when its command returns.
    runtime.shutdown_background();
    code
}

async fn dispatch(command: Command, request: Option<Request>, loaded: Option<Loaded>, passed: Passed) -> ExitCode {
    let config = loaded.as_ref().map(|loaded| &loaded.config);
    match command {
        Command::Run(args) => {
            let request = request.expect("this command has one");
            let loaded = loaded.expect("`config_request` asks for one for this command");
            commands::run::run(args, commands::run::Started { request, loaded, passed }).await
        }
        Command::Drain(args) => match commands::drain_options(&args, config) {
            Ok(options) => commands::drain::run(options).await,
            Err(exit) => exit.into(),
        },
        #[cfg(feature = "dev")]
        Command::Demo(args) => commands::demo::run(args.into()).await,
        #[cfg(not(feature = "dev"))]
        Command::Demo(_) => Exit::Usage.into(),
        Command::Send(args) => match commands::send_options(args, config) {
            Ok(options) => commands::send::run(options).await,
            Err(exit) => exit.into(),
        },
        Command::Tail(args) => commands::tail::run(commands::tail_options(args, config)).await,
        Command::Status(args) => match commands::status_options(&args, config) {
            Ok(options) => commands::status::run(options).await,
            Err(exit) => exit.into(),
        },
        Command::Spool(args) => commands::spool::run(args, config).await,
        Command::Dead(args) => commands::dead::run(args, config).await,
        Command::Check(args) => {
            commands::check::run(&args, &loaded.expect("`config_request` asks for one for this command")).await
        }
        Command::IamPolicy(args) => commands::iam_policy::run(&args, config, &RealEnvironment).await,
        Command::DevCert(args) => commands::dev_cert::run(&args),
        Command::Config(args) => commands::config::run(&args, &loaded.expect("`config_request` asks for one for this command")),
    }
}
