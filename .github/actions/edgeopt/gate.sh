#!/usr/bin/env bash
# Builds, measures and judges as the EDGEOPT_* variables say; writes the job's summary, annotations and outputs. The
# exit code of edgeopt becomes an output, so that the report is uploaded before the job fails.
set -uo pipefail

arguments=()
[[ -n $EDGEOPT_RUN ]] && arguments+=(--run "$EDGEOPT_RUN")
case $EDGEOPT_COMMAND in
  run)
    # What is stated and not judged would look like a gate.
    if [[ -n $EDGEOPT_BUDGET$EDGEOPT_BASELINE$EDGEOPT_SLOWER$EDGEOPT_DROP_POINTS$EDGEOPT_SECONDS ]]; then
      echo "::error title=edgeopt::command: run judges by the recipe: put budget, baseline and seconds into $EDGEOPT_RECIPE"
      exit 1
    fi
    arguments=("$EDGEOPT_RECIPE" "${arguments[@]}")
    ;;
  bench | report)
    while IFS= read -r line; do
      line=${line#"${line%%[![:space:]]*}"} # a path may have spaces, but for those around it
      line=${line%"${line##*[![:space:]]}"}
      [[ -n $line ]] && arguments+=(--budget "$line")
    done <<<"$EDGEOPT_BUDGET"
    [[ -n $EDGEOPT_BASELINE ]] && arguments+=(--baseline "$EDGEOPT_BASELINE")
    [[ -n $EDGEOPT_SLOWER ]] && arguments+=(--slower "$EDGEOPT_SLOWER")
    [[ -n $EDGEOPT_DROP_POINTS ]] && arguments+=(--drop-points "$EDGEOPT_DROP_POINTS")
    [[ $EDGEOPT_COMMAND == bench && -n $EDGEOPT_SECONDS ]] && arguments+=(--seconds "$EDGEOPT_SECONDS")
    ;;
  *)
    echo "::error title=edgeopt::command must be run, bench or report, not $EDGEOPT_COMMAND"
    exit 1
    ;;
esac
for target in $EDGEOPT_BUILD; do
  if ! edgeopt build ${EDGEOPT_RUN:+--run "$EDGEOPT_RUN"} --target "$target"; then
    echo "::error title=edgeopt::$target could not be built: the log says why"
    exit 1
  fi
done

[[ $EDGEOPT_ALLOW_UNDECIDED == true ]] && arguments+=(--allow-undecided)

said=$(edgeopt "$EDGEOPT_COMMAND" "${arguments[@]}")
code=$?
echo "$said"
report=$(sed -n 's|^report: \(.*\)/report\.html$|\1|p' <<<"$said" | tail -n 1)
verdict=$(sed -n 's|^budget \(.*\):$|\1|p' <<<"$said" | tail -n 1)
{
  echo "exit-code=$code"
  echo "verdict=$verdict"
  echo "report=${report:+$(realpath "$report")}"
} >>"$GITHUB_OUTPUT"
if [[ -n $report && -f $report/report.md ]]; then
  cat "$report/report.md" >>"$GITHUB_STEP_SUMMARY"
fi
# The lines that fail the job, where a reader of the log looks first; what is allowed to be open is no error.
annotate() { # kind, statuses
  grep -E "^  .+: .+ = .+ is ($2), " <<<"$said" | sed "s/^  /::$1 title=edgeopt budget::/" || true
}
if [[ $EDGEOPT_ALLOW_UNDECIDED == true ]]; then
  annotate error 'missed|unstable'
  annotate notice undecided
else
  annotate error 'missed|unstable|undecided'
fi
exit 0
