// Package e2e tests the program from the outside: the built binary, called by an
// implementation of GitLab Runner's side, with a real registry, a real libvirtd and a guest
// that boots. Tests run as an ordinary user (session mode) and, where that makes a
// difference to the code, as root (system mode). Each ends with a search for anything left
// behind.
//
//	go test -tags boot -count=1 ./test/e2e [-mode session|system]
//
// -count=1, because Go does not notice that the program has changed. The tag nightly adds
// the rows and tests that take long (make test-nightly).
//
// # GitLab Runner's contract
//
// What GitLab Runner does with the driver of a custom executor, the tests which show
// that its part is played so (package internal/testbed/gitlab), and those which show
// that the driver copes (this package, unless they name another).
//
//	what GitLab Runner does                                  | its part                          | the driver
//	Process
//	each stage is a process of its own, with its arguments   | TestScripts TestEnvironment       | TestJob TestWithoutRunner
//	run gets the path of a script and the name of its stage  | TestScripts                       | TestJob TestOneMachine
//	directory and TMPDIR: 0700, one for each attempt         | TestEnvironment TestAttempts      | TestJob
//	they are removed after cleanup                           | TestEnvironment TestAttempts      | TestJob executor.TestFromEnvWithoutPayload
//	standard input is empty                                  | TestEnvironment                   | TestJob
//	a process group of its own                               | TestSignal                        | TestInterruptedScript
//	output is read until everybody has closed it             | TestOutputHeld                    | TestJob TestOneMachine TestSignalDuringPrepare
//	Environment
//	the runner's, then the stage's, job_env, CUSTOM_ENV_     | TestEnvironmentOrder              | TestOneMachine executor.TestExitCodes executor.TestConfigNamesTheMachine
//	job_env is not there in config                           | TestEnvironment                   | TestConfig
//	every job variable and FF_ as CUSTOM_ENV_                | TestEnvironment TestEnvironmentOrder | TestOneMachine
//	config does not know the directories                     | TestEnvironment                   | TestConfig
//	file variables carry contents                            | TestFileVariables                 | TestOneMachine
//	CI_JOB_IMAGE only if the job names an image              | TestEnvironment TestEnvironmentOrder | TestBadInput
//	CI_JOB_SERVICES is empty or JSON; none is started        | TestEnvironmentOrder              | TestOneMachine executor.TestFromEnv
//	JOB_RESPONSE_FILE: 0600, each attempt, from config on    | TestEnvironment TestAttempts      | TestOneMachine executor.TestFromBadEnv
//	its image.pull_policy                                    | TestPayload                       | TestRefused executor.TestJobPullPolicy
//	its credentials                                          | TestPayload                       | TestOneMachine
//	its runner_info.timeout                                  | TestPayload                       | TestOneMachine
//	its image.entrypoint and executor_opts                   | TestPayload                       | TestOneMachine
//	a variable of 128 KiB breaks every stage (E2BIG)         | TestTooLargeVariable              | TestOneMachine
//	config
//	one JSON object; empty is fine, unknown keys too         | TestConfigFallsBack TestExitCodes | TestConfig
//	builds_dir, cache_dir, builds_dir_is_shared              | TestConfigFallsBack TestExitCodes | TestConfig
//	shell                                                    | TestPowerShellScripts             | TestConfig TestPowerShell
//	standard error goes to the job log                       | TestWhoSeesWhat                   | TestConfig TestBadInput
//	bad JSON is tried again                                  | TestExitCodes                     | TestConfig
//	Order
//	config, prepare, run, cleanup, and then the status       | TestExitCodes TestStageOrder      | TestJob
//	stages in their order, each if there is something to do  | TestStageOrder                    | TestOneMachine TestExitCodes
//	clear_worktree after a failed get_sources                | TestScriptAttempts                | TestOneMachine
//	step_NAME, and stages that nobody knows yet              | TestStageOrder                    | TestOneMachine
//	after_script whatever the script's end                   | TestScripts TestStageOrder        | TestJob TestExitCodes TestInterruptedScript
//	cleanup_file_variables, whose failure is one warning     | TestFileVariables TestStageOrder  | TestOneMachine executor.TestOutcome
//	a script is a 0700 file, self-contained                  | TestScripts                       | TestOneMachine
//	a .ps1 for PowerShell                                    | TestPowerShellScripts             | TestPowerShell
//	cache and artifacts call gitlab-runner in the guest      | TestStageOrder                    | TestOneMachine TestPowerShell
//	Exit codes
//	build failure of config or prepare: no other attempt     | TestExitCodes                     | TestBadInput TestRefused
//	system failure of config or prepare: three attempts      | TestExitCodes TestAttempts        | TestBadInput TestPrepareTimeout
//	any other status, or killed: three attempts              | TestExitCodes                     | TestKilledPrepare TestFaults
//	build failure of run: the status in the code file, or 1  | TestExitCodes                     | TestExitCodes TestOneMachine
//	system failure of run                                    | TestExitCodes                     | TestInterruptedScript TestFaults
//	any other status of run, or killed                       | TestExitCodes                     | TestInterruptedScript
//	the code file is shared by all stages, and not emptied   | TestCodeFileIsShared              | TestExitCodes TestOneMachine main.TestExitCodeOfNoScript
//	its first line must be a number                          | TestExitCodes                     | TestExitCodes TestOneMachine
//	cleanup after each attempt that failed, config's too     | TestExitCodes                     | TestBadInput TestJob
//	some time between attempts                               | TestAttempts                      | TestPrepareTimeout
//	GET_SOURCES_ATTEMPTS and friends, on any failure         | TestScriptAttempts                | TestOneMachine
//	Output
//	prepare and run: to the job log                          | TestWhoSeesWhat                   | TestJob TestOneMachine
//	masked                                                   | TestWhoSeesWhat                   | TestObserved
//	cleanup: to the runner's log                             | TestWhoSeesWhat                   | TestInterruptedScript TestJob
//	a failed cleanup is one warning, and changes nothing     | TestWhoSeesWhat TestExitCodes     | TestInterruptedScript
//	Timeouts, cancel, signals
//	config, prepare and cleanup have a time of their own     | TestStageTimeout                  | TestPrepareTimeout TestSignalDuringConfig TestSignalDuringScriptAndCleanup
//	run has that of the job                                  | TestTimeouts TestStageTimeout     | TestInterruptedScript
//	SIGTERM to the group, then SIGKILL                       | TestCancel TestSignal             | TestSignalDuringPrepare TestSignalDuringScriptAndCleanup TestInterruptedScript
//	the status after SIGTERM is believed                     | TestStageTimeout                  | TestSignalDuringPrepare TestSignalAtEndOfPrepare TestSignalDuringScriptAndCleanup TestSignalDuringConfig main.TestNoSuccessAfterSignal
//	cleanup beside a run that does not end                   | TestCleanupBesideRun              | TestInterruptedScript TestCleanupBesideScript
//	cancel during a script, abrupt                           | TestCancel                        | TestInterruptedScript
//	cancel during a script, graceful                         | TestGracefulCancel                | TestInterruptedScript
//	cancel during prepare: no other attempt                  | TestCancelPrepare TestGracefulCancel | TestCanceledPrepare
//	RUNNER_SCRIPT_TIMEOUT, RUNNER_AFTER_SCRIPT_TIMEOUT       | TestTimeouts                      | TestInterruptedScript
//	the job's timeout                                        | TestTimeouts                      | TestInterruptedScript
//	a runner that is killed leaves all as it is              | TestSignal                        | TestSignalDuringScriptAndCleanup TestFaults executor.TestSweep
package e2e
