#!/bin/sh
# Kafka's own reader of log files, under the name that it has in the official image.
exec java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
  -Dlog4j.configuration=file:/opt/kafka/tools/log4j.properties -Dlog4j2.configurationFile=/opt/kafka/tools/log4j2.yaml \
  -cp '/opt/kafka/tools/*:/opt/kafka/libs/*' kafka.tools.DumpLogSegments "$@"
