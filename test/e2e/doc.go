// Package e2e tests the program from the outside: the built binary, called by
// GitLab Runner's part, with a real registry, a real libvirtd and a guest that
// boots. Tests run as an ordinary user (session mode) and, where that makes a
// difference to the code, as root (system mode), and end with a look for anything left
// behind.
//
//	go test -tags boot -count=1 ./test/e2e [-mode session|system]
//
// -count=1, because Go does not see that the program has changed.
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
//	run gets the path of a script and the name of its stage  | TestScripts                       | TestJob TestScriptEnds
//	directory and TMPDIR: 0700, one for each attempt         | TestEnvironment TestAttempts      | TestJob
//	they are removed after cleanup                           | TestEnvironment TestAttempts      | TestCleanupAgain executor.TestFromEnvWithoutPayload
//	standard input is empty                                  | TestEnvironment                   | TestJob
//	a process group of its own                               | TestSignal                        | TestInterruptedScript TestScriptTimeout
//	output is read until everybody has closed it             | TestOutputHeld                    | TestJob TestScriptEnds TestSignalDuringPrepare
//	Environment
//	the runner's, then the stage's, job_env, CUSTOM_ENV_     | TestEnvironmentOrder              | TestOtherJobsMachine executor.TestExitCodes executor.TestConfigNamesTheMachine
//	job_env is not there in config                           | TestEnvironment                   | TestConfig
//	every job variable and FF_ as CUSTOM_ENV_                | TestEnvironment TestEnvironmentOrder | TestPrepareScript TestOtherJobsMachine TestVariablesEndWithDriver
//	config does not know the directories                     | TestEnvironment                   | TestConfig
//	file variables carry contents                            | TestFileVariables                 | TestPrepareScript TestLargeVariables TestStages
//	CI_JOB_IMAGE only if the job names an image              | TestEnvironment TestEnvironmentOrder | TestBadInput
//	CI_JOB_SERVICES is empty or JSON; none is started        | TestEnvironmentOrder              | TestRunnerBinary executor.TestFromEnv
//	JOB_RESPONSE_FILE: 0600, each attempt, from config on    | TestEnvironment TestAttempts      | TestOtherJobsMachine executor.TestFromBadEnv
//	its image.pull_policy                                    | TestPayload                       | TestRefused executor.TestJobPullPolicy
//	its credentials                                          | TestPayload                       | TestPayload
//	its runner_info.timeout                                  | TestPayload                       | TestPayload
//	its image.entrypoint and executor_opts                   | TestPayload                       | TestPayload
//	a variable of 128 KiB breaks every stage (E2BIG)         | TestTooLargeVariable              | TestLargeVariables TestLargestEnvironment
//	config
//	one JSON object; empty is fine, unknown keys too         | TestConfigFallsBack TestExitCodes | TestConfig
//	builds_dir, cache_dir, builds_dir_is_shared              | TestConfigFallsBack TestExitCodes | TestConfig
//	shell                                                    | TestPowerShellScripts             | TestConfig TestPowerShellJob
//	standard error goes to the job log                       | TestWhoSeesWhat                   | TestConfig TestBadInput
//	bad JSON is tried again                                  | TestExitCodes                     | TestConfig
//	Order
//	config, prepare, run, cleanup, and then the status       | TestExitCodes TestStageOrder      | TestJob
//	stages in their order, each if there is something to do  | TestStageOrder                    | TestStages TestExitCodes
//	clear_worktree after a failed get_sources                | TestScriptAttempts                | TestStages
//	step_NAME, and stages that nobody knows yet              | TestStageOrder                    | TestStages TestScriptEnds
//	after_script whatever the script's end                   | TestScripts TestStageOrder        | TestJob TestExitCodes TestScriptTimeout
//	cleanup_file_variables, whose failure is one warning     | TestFileVariables TestStageOrder  | TestStages executor.TestOutcome
//	a script is a 0700 file, self-contained                  | TestScripts                       | TestScriptEnds
//	a .ps1 for PowerShell                                    | TestPowerShellScripts             | TestPowerShellScript TestPowerShellJob
//	cache and artifacts call gitlab-runner in the guest      | TestStageOrder                    | TestRunnerBinary TestRunnerBinaryInAGuestThatGreets TestPowerShellJob
//	Exit codes
//	build failure of config or prepare: no other attempt     | TestExitCodes                     | TestBadInput TestRefused
//	system failure of config or prepare: three attempts      | TestExitCodes TestAttempts        | TestBadInput TestPrepareTimeout
//	any other status, or killed: three attempts              | TestExitCodes                     | TestKilledPrepare TestFaults
//	build failure of run: the status in the code file, or 1  | TestExitCodes                     | TestExitCodes TestScriptEnds
//	system failure of run                                    | TestExitCodes                     | TestInterruptedScript TestFaults
//	any other status of run, or killed                       | TestExitCodes                     | TestInterruptedScript
//	the code file is shared by all stages, and not emptied   | TestCodeFileIsShared              | TestExitCodes TestStages main.TestExitCodeOfNoScript
//	its first line must be a number                          | TestExitCodes                     | TestExitCodes TestScriptEnds
//	cleanup after each attempt that failed, config's too     | TestExitCodes                     | TestBadInput TestCleanupAgain
//	some time between attempts                               | TestAttempts                      | TestPrepareTimeout
//	GET_SOURCES_ATTEMPTS and friends, on any failure         | TestScriptAttempts                | TestStages
//	Output
//	prepare and run: to the job log                          | TestWhoSeesWhat                   | TestJob TestScriptEnds
//	masked                                                   | TestWhoSeesWhat                   | TestObserved
//	cleanup: to the runner's log                             | TestWhoSeesWhat                   | TestCleanupFails TestCleanupAgain
//	a failed cleanup is one warning, and changes nothing     | TestWhoSeesWhat TestExitCodes     | TestCleanupFails
//	Timeouts, cancel, signals
//	config, prepare and cleanup have a time of their own     | TestStageTimeout                  | TestPrepareTimeout TestSignalDuringConfig TestSignalDuringCleanup
//	run has that of the job                                  | TestTimeouts TestStageTimeout     | TestJobTimeout
//	SIGTERM to the group, then SIGKILL                       | TestCancel TestSignal             | TestSignalDuringPrepare TestSignalsDuringPrepare TestSignalDuringScript TestInterruptedScript
//	the status after SIGTERM is believed                     | TestStageTimeout                  | TestSignalDuringPrepare TestSignalAtEndOfPrepare TestSignalDuringScript TestSignalDuringCleanup TestSignalDuringConfig main.TestNoSuccessAfterSignal
//	cleanup beside a run that does not end                   | TestCleanupBesideRun              | TestCleanupBesideRun TestStageBesideOneThatEnds
//	cancel during a script, abrupt                           | TestCancel                        | TestInterruptedScript
//	cancel during a script, graceful                         | TestGracefulCancel                | TestScriptTimeout
//	cancel during prepare: no other attempt                  | TestCancelPrepare TestGracefulCancel | TestCanceledPrepare
//	RUNNER_SCRIPT_TIMEOUT, RUNNER_AFTER_SCRIPT_TIMEOUT       | TestTimeouts                      | TestScriptTimeout
//	the job's timeout                                        | TestTimeouts                      | TestJobTimeout
//	a runner that is killed leaves all as it is              | TestSignal                        | TestSignalDuringScript TestFaults executor.TestSweep
package e2e
