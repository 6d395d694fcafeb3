-- wrk's side of load.py: asks for random users, and writes down the stages that every answer names.
local users, count, stages = {}, 0, nil

function init(args)
  for user in io.lines(os.getenv("USERS_FILE")) do
    count = count + 1
    users[count] = user
  end
  math.randomseed(tonumber(os.getenv("LOAD_SEED")))
  stages = io.open(os.getenv("STAGES_FILE"), "w")
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local user = users[math.random(count)]
  return wrk.format(nil, "/v1/recommend", nil, '{"explain":true,"user":' .. user .. "}")
end

function response(status, headers, body)
  local found = body:match('"seconds":(%b{})')
  if found then stages:write(found, "\n") end
end
