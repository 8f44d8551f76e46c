// Made from clients/js/packages/client by `npm run served`: change that, not this.
var OPERATORS=["eq","neq","lt","lte","gt","gte","in","is"];function conditions(where){return where==null?[]:typeof where==
"string"?[where]:Array.isArray(where)?where.map(String):Object.entries(where).flatMap(([column,tests])=>columnConditions(
column,tests))}function isByColumn(where){return isPlain(where)&&Object.values(where).every(isPlain)}function isPlain(value){
return value!==null&&typeof value=="object"&&!Array.isArray(value)}function columnConditions(column,tests){if(!isPlain(
tests))throw new TypeError(`where: ${column} needs an operator, as in { ${column}: { eq: ... } }`);return Object.
entries(tests).filter(([,value])=>value!==void 0).map(([operator,value])=>`${column}.${operator}.${operand(column,
operator,value)}`)}function operand(column,operator,value){if(!OPERATORS.includes(operator))throw new TypeError(
`where: ${operator} of ${column} is none of ${OPERATORS.join(", ")}`);if(operator==="is")return"null";if(operator!==
"in")return text(column,value);if(!Array.isArray(value))throw new TypeError(`where: ${column}.in needs an arra\
y`);return`(${value.map(item=>quoted(text(column,item))).join(",")})`}function text(column,value){if(value===null)
throw new TypeError(`where: nothing equals null; write { ${column}: { is: null } }`);return value instanceof Date?
value.toISOString():String(value)}function quoted(item){return item&&!/[",()\\\s]/.test(item)?item:`"${item.replace(
/["\\]/g,"\\$&")}"`}function streamAddress(query,fallback){let{url,tables,pk,where,columns,operations,conflate}=query,names=listed(
tables);if(!names.length)throw new TypeError('tables is missing: say which, as tables: "public.orders"');let path=names.
length===1?`changes/${encodeURIComponent(names[0])}`:"changes",target=below(baseOf(url,fallback),path),add=(name,values)=>values.
forEach(value=>target.searchParams.append(name,value));return names.length>1&&add("table",names),add("pk",qualified(
names,pk,keyText)),add("where",whereTexts(names,where)),add("columns",qualified(names,columns,String)),operations&&
add("operations",[listed(operations).join(",")]),conflate&&add("conflate",["true"]),target.href}function ticketAddress(url,fallback){
return below(baseOf(url,fallback),"tickets").href}function listed(value){return value==null?[]:Array.isArray(value)?[...value]:[value]}function baseOf(url,fallback){
let base=url?parsed(String(url))??new URL(url,here(String(url))):fallback();if(!/^https?:$/.test(base.protocol))
throw new TypeError(`url: ${base.href} does not begin with http:// or https://`);return base.pathname.endsWith(
"/")||(base.pathname+="/"),base}function parsed(url,base){try{return new URL(url,base)}catch{return null}}function here(wanted){
let place=globalThis.document?.baseURI??globalThis.location?.href;if(place&&parsed("/",place))return place;throw new TypeError(
`"${wanted}" has no page that it is relative to here: give url as a whole, as url: "https://app.example/v1"`)}
function below(base,path){let target=new URL(path,base);return target.search=base.search,target}function keyText(key){
return Array.isArray(key)?JSON.stringify(key,(_,part)=>typeof part=="bigint"?String(part):part):String(key)}function qualified(names,values,text2){
return values===null||typeof values!="object"||Array.isArray(values)?listed(values).map(text2):Object.entries(
values).flatMap(([name,items])=>listed(items).map(item=>prefix(names,name)+text2(item)))}function whereTexts(names,where){
return where===null||typeof where!="object"||Array.isArray(where)?conditions(where):names.length===1&&isByColumn(
where)&&!(names[0]in where)?conditions(where):Object.entries(where).flatMap(([name,own])=>conditions(own).map(
text2=>prefix(names,name)+text2))}function prefix(names,name){return names.length>1?`${name}:`:""}function keyOf(key){return JSON.stringify(Object.values(key))}function differing(old,row){let[before,now]=[old,
row];return Object.keys({...before,...now}).filter(name=>JSON.stringify(before[name])!==JSON.stringify(now[name]))}
var Rows=class{#names;#limit;#keys;#maps;#shown;#list=null;#staged=null;constructor(names,limit){this.#names=names,
this.#limit=limit,this.#keys=names.map(()=>[]),this.#maps=this.#empty(),this.#shown=names.map(()=>null)}of(index){
let map=this.#maps[index];return map&&(this.#shown[index]??=new Map(map))}get list(){return this.#list??=[...this.#maps[0]?.
values()??[]]}get(at){return this.#maps[0]?.get(at)}contents(){return{keys:this.#keys,maps:this.#maps}}stage(data){
this.#staged??=this.#empty(),data.key&&data.row&&this.#staged[this.#place(data)].set(keyOf(data.key),data.row)}unstage(){
this.#staged=null}swap(){let maps=this.#staged??this.#empty();return this.#staged=null,this.replace({keys:this.#keys,
maps})}replace({keys,maps}){return this.#keys=keys,this.#maps.flatMap((map,index)=>this.#become(index,map,maps[index]??
new Map))}apply(operation,data){let index=this.#place(data),map=this.#maps[index];if(this.#outdate(index),operation===
"truncate")return void map.clear();let at=keyOf(data.key),held=map.get(at);return operation==="delete"||!data.
row?map.delete(at):this.#put(map,at,data.row),held}#put(map,at,row){this.#limit!==1/0&&map.delete(at),map.set(
at,row),map.size>this.#limit&&map.delete(map.keys().next().value)}#become(index,map,wanted){let changes=differences(
map,wanted);changes.length&&this.#outdate(index);for(let{at,row}of changes)row?map.set(at,row):map.delete(at);
return changes.map(({at,...change})=>({...change,...this.#named(index,at)}))}#outdate(index){this.#shown[index]=
null,index===0&&(this.#list=null)}#empty(){return this.#names.map(()=>new Map)}#place({schema,table,key}){let found=this.#names.
findIndex(name=>name===`${schema}.${table}`||name===table),index=Math.max(found,0);return key&&(this.#keys[index]=
Object.keys(key)),index}#named(index,at){let values=JSON.parse(at),names=this.#keys[index]??[],key=Object.fromEntries(
names.map((name,place)=>[name,values[place]]));return{table:this.#names[index],key}}};function differences(old,now){
let changes=[];for(let[at,row]of now){let before=old.get(at),changed=before?differing(before,row):null;before?
changed.length&&changes.push({operation:"update",at,row,old:before,changed}):changes.push({operation:"insert",
at,row,old:null,changed:null})}for(let[at,row]of old)now.has(at)||changes.push({operation:"delete",at,row:null,
old:row,changed:null});return changes}function changeFrom(data,held,position){let{key,row=null,operation}=data,old=data.old??held,isUpdate=operation===
"update"&&old&&row,change={operation,table:`${data.schema}.${data.table}`,key,row,old,changed:data.changed??(isUpdate?
differing(old,row):null),source:"stream",position};return data.captured_at&&(change.capturedAt=data.captured_at),
data.transaction_id&&(change.transactionId=data.transaction_id),change}var ConnectionError=class extends Error{constructor(failure){super(failure.reason);this.failure=failure}failure},
UNAUTHORIZED=401;async function headersOf(connection,refused){let{headers,token}=connection,given=typeof headers==
"function"?await headers():headers,bearer=typeof token=="function"?await token({refused}):token;return{...given,
...bearer?{Authorization:`Bearer ${bearer}`}:{}}}async function authorized(connection,send){let answer=await send(
await headersOf(connection,!1)),canRefresh=typeof connection.token=="function"||typeof connection.headers=="fu\
nction";return answer.status!==UNAUTHORIZED||!canRefresh?answer:(answer.body?.cancel(),send(await headersOf(connection,
!0)))}async function ticketOf(connection,tickets){let{ticket,token,transport}=connection;if(ticket)return typeof ticket==
"function"?ticket():ticket;if(!token||transport!=="eventsource")return null;let request=fetchOf(connection),answer=await authorized(
connection,headers=>request(tickets(),{method:"POST",headers,credentials:credentialsOf(connection)}));if(!answer.
ok)throw new ConnectionError(await refusal(answer));return(await answer.json()).ticket}function fetchOf(connection){
return connection.fetch??globalThis.fetch.bind(globalThis)}function credentialsOf({withCredentials}){return withCredentials?
"include":"same-origin"}async function refusal(answer){let problem=await answer.json().catch(()=>null),detail=problem?.
detail??problem?.title,reason=typeof detail=="string"?detail:`the service answered ${answer.status}`,later=Number(
answer.headers.get("retry-after"))*(1e3+Math.random()*200);return{reason,status:answer.status,pause:later||void 0}}
function unreachable(address){let own=globalThis.location?.origin;return`the service cannot be reached${own&&own!==
"null"&&new URL(address).origin!==own?` (or does not allow pages of ${own} to read from it: CORS)`:""}`}function failureOf(error){
return error instanceof ConnectionError?error.failure:{reason:error instanceof Error?error.message:String(error)}}var ONLINE=["online","pageshow"];function isPage(){return typeof document<"u"}function isVisible(){return!isPage()||
document.visibilityState==="visible"}function onComeback(act){let ending=new AbortController,{signal}=ending,whenVisible=()=>isVisible()&&
act(),listen=globalThis.addEventListener?.bind(globalThis);for(let name of ONLINE)listen?.(name,whenVisible,{signal});
return isPage()&&document.addEventListener("visibilitychange",whenVisible,{signal}),()=>ending.abort()}var Listeners=class{#lists=new Map;add(event,listener){let own=value=>listener(value),list=this.#lists.get(event)??
new Set;return this.#lists.set(event,list.add(own)),()=>{list.delete(own)}}notify(event,value){for(let listener of[
...this.#lists.get(event)??[]])try{listener(value)}catch(error){report(error)}}clear(){this.#lists.clear()}};function report(error){
typeof reportError=="function"?reportError(error):console.error(error)}var FrameParser=class{#rest="";#type="";#data=[];#id="";#begun=!1;feed(text2){return this.#lines(text2).map(line=>this.#take(
line)).filter(frame=>frame!==null)}#lines(text2){!this.#begun&&text2&&(this.#begun=!0,text2=text2.replace(/^\uFEFF/,
""));let all=this.#rest+text2,end=all.endsWith("\r")?all.length-1:all.length,lines=all.slice(0,end).split(/\r\n|\r|\n/);
return this.#rest=lines.pop()+all.slice(end),lines}#take(line){if(line==="")return this.#finish();let colon=line.
indexOf(":"),name=colon<0?line:line.slice(0,colon),value=colon<0?"":line.slice(colon+1).replace(/^ /,"");return name===
"event"?this.#type=value:name==="data"?this.#data.push(value):name==="id"&&!value.includes("\0")&&(this.#id=value),
null}#finish(){let frame={type:this.#type||"message",data:this.#data.join(`
`),id:this.#id},isEvent=this.#data.length>0;return this.#type="",this.#data=[],isEvent?frame:null}};var EVENTS=["insert","update","delete","truncate","snapshot","snapshot-end","heartbeat","reset","bye"],STREAM="\
text/event-stream",LOST="the connection was lost";function openFetch(address,connection,handlers){let ending=new AbortController,
failed=error=>{ending.signal.aborted||handlers.failed(failureOf(error))};return follow(address,connection,ending.
signal,handlers).catch(failed),{close:()=>ending.abort()}}async function follow(address,connection,signal,handlers){
let answer=await answerOf(address,connection,signal);if(!answer.ok)throw new ConnectionError(await refusal(answer));
let type=answer.headers.get("content-type")??"nothing that is named";if(!answer.body||!type.startsWith(STREAM))
throw answer.body?.cancel(),new ConnectionError({reason:`${new URL(address).pathname} answers ${type}, which i\
s no stream: is url right?`});handlers.opened(),await read(answer.body.getReader(),signal,handlers)}async function answerOf(address,connection,signal){
let request=fetchOf(connection),settings={signal,cache:"no-store",credentials:credentialsOf(connection)};return authorized(
connection,async headers=>{try{return await request(address,{...settings,headers:{Accept:STREAM,...headers}})}catch{
throw new ConnectionError({reason:unreachable(address)})}})}async function read(reader,signal,handlers){let decoder=new TextDecoder,
parser=new FrameParser;for(;;){let{done,value}=await reader.read().catch(()=>({done:!0,value:void 0}));if(signal.
aborted)return;if(done)throw new ConnectionError({reason:LOST});handlers.alive(),parser.feed(decoder.decode(value,
{stream:!0})).forEach(handlers.frame)}}function openEventSource(url,connection,handlers,why){if(typeof EventSource!=
"function")throw new TypeError('there is no EventSource here: leave out transport: "eventsource"');let source=new EventSource(
url,{withCredentials:!!connection.withCredentials}),isOpen=!1;source.onopen=()=>{isOpen=!0,handlers.opened()},
source.onerror=()=>{source.close(),isOpen?handlers.failed({reason:LOST}):why().then(handlers.failed)};for(let type of EVENTS)
source.addEventListener(type,({data,lastEventId})=>{handlers.alive(),handlers.frame({type,data,id:lastEventId})});
return source}async function reasonOf(address,connection){let ending=new AbortController,{signal}=ending,target="";
try{target=await address();let answer=await fetchOf(connection)(target,{signal,credentials:credentialsOf(connection)});
return answer.ok?{reason:LOST}:await refusal(answer)}catch(error){return error instanceof ConnectionError||!target?
failureOf(error):{reason:unreachable(target)}}finally{ending.abort()}}var TIMEOUT=5e3;function probe(address,connection,signal){return new Promise(resolve=>{let transactions=new Set,
source=null,finish=passed=>{clearTimeout(timer),source?.close(),resolve(passed)},timer=setTimeout(()=>finish(null),
TIMEOUT);signal.addEventListener("abort",()=>finish(null));let frame=({type,data,id})=>{let transaction=transactionOf(
data);transaction?transactions.add(transaction):type==="heartbeat"&&id?finish({position:id,transactions}):(type===
"reset"||type==="bye")&&finish(null)},ignore=()=>{};source=openFetch(address,connection,{opened:ignore,alive:ignore,
frame,failed:()=>finish(null)})})}function transactionOf(data){let{transaction_id:id=null}=JSON.parse(data);return id}var Tabs=class{leads=!1;#name;#handlers;#channel;#release=null;#pending=null;#closed=!1;#started=!1;#synced=!1;#asked=!1;#arrivedAt=Date.
now();#term=0;#n=0;constructor(name,handlers){if(this.#name=name,this.#handlers=handlers,!navigator.locks)throw new TypeError(
"there are no locks here");this.#channel=new BroadcastChannel(name),this.#channel.onmessage=({data})=>this.leads?
this.#answer(data):this.#obey(data),this.#request({ifAvailable:!0},0)}get follows(){return!this.leads}forward(message){
this.#n+=1,this.#post("event",{message})}renew(){this.#n+=1,this.#shareState()}shareStatus(status){this.leads&&
this.#post("status",{status})}check(){let silent=Date.now()-this.#arrivedAt-this.#handlers.silence(),isNeeded=isVisible()&&
this.#handlers.isOverdue();silent>1e3&&this.#asked||isNeeded?this.#depose():silent>0&&!this.#asked&&(this.#asked=
!0,this.#post("ping"))}close(){this.#closed=!0,this.leads=!1,this.#pending?.abort(),this.#release?.(),this.#channel.
close()}#shareState(){let state=this.#handlers.state();this.leads&&state&&this.#post("state",{state})}#depose(){
this.#pending?.abort(),this.#arrivedAt=Date.now(),this.#request({steal:!0},100)}#post(kind,content={}){this.#closed||
this.#channel.postMessage({kind,term:this.#term,n:this.#n,...content})}#request(options,pause){let granted=lock=>lock?
this.#lead(pause):this.#follow();navigator.locks.request(this.#name,options,granted).catch(error=>{error.name!==
"AbortError"?this.#handlers.alone():this.leads&&this.#follow()})}#follow(){this.#closed||(this.leads=this.#started=
this.#synced=this.#asked=!1,this.#arrivedAt=Date.now(),this.#pending=new AbortController,this.#handlers.follow(),
this.#post("hello"),this.#request({signal:this.#pending.signal},100))}#lead(pause){if(!this.#closed)return this.
leads=!0,this.#term=Math.max(Date.now(),this.#term+1),pause&&this.#post("election"),setTimeout(()=>this.#start(),
pause),new Promise(resolve=>this.#release=resolve)}#start(){this.leads&&(this.#started=!0,this.#post("start"),
this.#handlers.lead())}#answer({kind,n,state}){kind==="ping"?this.#post("pong"):kind==="hello"&&this.#started?
this.#shareState():kind==="state"&&!this.#started&&n>this.#n&&this.#take(n,state)}#obey({kind,term,n,state,status,
message}){kind==="hello"||kind==="ping"||term<this.#term||(this.#term=term,this.#arrivedAt=Date.now(),this.#asked=
!1,kind==="election"?this.#concede(n):kind==="start"&&n!==this.#n?this.#resync():kind==="state"&&(n>this.#n||!this.#synced)?
this.#take(n,state):kind==="event"&&this.#synced?this.#step(n,message):kind==="status"&&this.#synced&&this.#handlers.
status(status))}#concede(n){let state=this.#synced&&this.#n>n&&this.#handlers.state();state&&this.#post("state",
{state})}#resync(){this.#synced=!1,this.#post("hello")}#step(n,message){n===this.#n+1?(this.#n=n,this.#handlers.
message(message)):n>this.#n&&this.#resync()}#take(n,state){this.#n=n,this.#synced=!0,this.#handlers.adopt(state)}};function groupOf(options,address){let{ticket,token,headers,after,snapshot=!0}=options,share=options.share??(isPage()&&
!(ticket||token||headers));return!share||after?null:`rowsignal ${share===!0?"":share} ${snapshot} ${address}`}
function joined(name,handlers){try{return new Tabs(name,handlers)}catch{return null}}function passOn(tabs,message){
message.type==="snapshot-end"?tabs?.renew():message.type!=="snapshot"&&tabs?.forward(message)}function newsOf({
status,reason,retryAt}){return{status,reason,retryAt}}var SILENCE=2.5,REFUSALS=[401,403,404,422],SETTLED=1e4,ASK_EVERY=4,DELAYS=[500,3e4],CONNECT_TIMEOUT=2e4,Stream=class{interval=15;#connection;#handlers;#delays;#source=null;#turn=0;#attempt=0;#timer=null;#openedAt=0;#arrivedAt=0;#isConnecting=!1;constructor(connection,handlers){
this.#connection=connection,this.#handlers=handlers,this.#delays=connection.retryDelays??DELAYS}async connect(){
this.close();let turn=this.#turn;if(this.#openedAt=0,this.#arrivedAt=Date.now(),this.#isConnecting=!0,this.#handlers.
changed({status:"connecting",retryAt:null}),turn===this.#turn)try{this.#handlers.begins();let address=await this.#handlers.
address();turn===this.#turn&&(this.#source=this.#open(address,turn))}catch(error){turn===this.#turn&&this.#lost(
failureOf(error))}}close(){this.#timer!==null&&clearTimeout(this.#timer),this.#timer=null,this.#turn+=1,this.#isConnecting=
!1,this.#source?.close(),this.#source=null}restart(reason){this.#lost({reason})}hurry(){this.#timer!==null&&!this.#source?
this.connect():this.check()}check(){let patience=this.#connection.connectTimeout??CONNECT_TIMEOUT,limit=this.#openedAt?
SILENCE*this.interval*1e3:patience,silent=Date.now()-this.#arrivedAt,seconds=Math.round(silent/1e3);this.#isConnecting&&
silent>limit&&this.#lost({reason:`nothing arrived for ${seconds} s`})}#open(address,turn){let now=act=>(...given)=>{
turn===this.#turn&&act(...given)},handlers={opened:now(()=>this.#openedAt=this.#arrivedAt=Date.now()),alive:now(
()=>this.#arrivedAt=Date.now()),frame:now(frame=>this.#take(frame)),failed:now(failure=>this.#lost(failure))};
return this.#connection.transport!=="eventsource"?openFetch(address,this.#connection,handlers):openEventSource(
address,this.#connection,handlers,()=>this.#why())}async#why(){return this.#attempt%ASK_EVERY?{reason:"the ser\
vice cannot be reached"}:reasonOf(()=>this.#handlers.address(),this.#connection)}#take({type,data:text2,id}){if(!EVENTS.
includes(type))return;let data=parsed2(text2);data?type==="bye"?this.#lost({reason:String(data.reason),pause:pauseOf(
data.retry)}):this.#handlers.message({type,data,id}):this.#lost({reason:`the service sent a ${type} that is no\
t JSON`})}#lost({reason,pause,status}){this.#openedAt&&Date.now()-this.#openedAt>SETTLED&&(this.#attempt=0),this.
close();let[first,last]=this.#delays,refused=status!==void 0&&REFUSALS.includes(status),bound=refused?last:Math.
min(last,first*2**this.#attempt),wait=pause??bound*(.5+Math.random()/2);this.#attempt+=1,this.#timer=setTimeout(
()=>{this.connect()},wait);let retryAt=Date.now()+wait;this.#handlers.changed({status:refused?"refused":"waiti\
ng",reason,retryAt,attempt:this.#attempt})}};function pauseOf(retry){return typeof retry=="number"?retry:void 0}
function parsed2(text2){try{let value=JSON.parse(text2);return typeof value=="object"?value:null}catch{return null}}function hasPassed(position,transaction){let bytes=decoded(position.split(".")[0]),kind=bytes?.[0];if(!bytes||
kind!==1&&kind!==2)return null;let numbers=varints(bytes.subarray(17)),xmax=numbers.next().value;return xmax===
void 0?null:transaction<xmax&&!isRunning(numbers,xmax,transaction)}function isRunning(numbers,xmax,transaction){
let left=numbers.next().value??0n;for(let xid=xmax;left>0n;left-=1n)if(xid-=numbers.next().value??0n,xid===transaction)
return!0;return!1}function decoded(text2){try{let raw=atob(text2.replaceAll("-","+").replaceAll("_","/"));return Uint8Array.
from(raw,character=>character.charCodeAt(0))}catch{return null}}function*varints(bytes){let number=0n,shift=0n;
for(let byte of bytes)number|=BigInt(byte&127)<<shift,shift+=7n,byte<128&&(yield number,number=shift=0n)}var TIMEOUT2=3e4,REMEMBERED=1e3,PROBES=[300,5e3],QUIET=200,TransactionTimeoutError=class extends Error{name="T\
ransactionTimeoutError";constructor(id,milliseconds){super(`transaction ${id} was not seen within ${milliseconds}\
 ms: was it committed, on this database, and did it return pg_current_xact_id()?`)}},Transactions=class{#waits=new Set;#seen=new Set;#timer=null;#changedAt=0;#position=null;#ended=null;#probe;#ending=new AbortController;#probing=null;#pause=PROBES[0];constructor(probe2){
this.#probe=probe2}wait(id,{timeout=TIMEOUT2,signal}={}){let number=numberOf(id);return new Promise((resolve,reject)=>{
let late=()=>wait.finish(new TransactionTimeoutError(number,timeout)),aborted=()=>wait.finish(signal.reason),timer=setTimeout(
late,timeout),finish=error=>{clearTimeout(timer),signal?.removeEventListener("abort",aborted),this.#waits.delete(
wait),error===void 0?resolve():reject(error)},wait={id:number,isSeen:this.#seen.has(String(number)),precedesSnapshot:!1,
finish};this.#waits.add(wait),signal?.addEventListener("abort",aborted),signal?.aborted?aborted():this.#begin(
wait)})}beginsSnapshot(){for(let wait of this.#waits)wait.precedesSnapshot=!0}completed(){this.#finish(wait=>wait.
precedesSnapshot)}saw(id){let text2=String(id);this.#changedAt=Date.now(),this.#remember(text2);for(let wait of this.#waits)
wait.isSeen||=String(wait.id)===text2;this.#watchQuiet()}beat(id){(id||!this.#position)&&this.#finish(wait=>wait.
isSeen)}reached(position){this.#position=position,position&&this.#finish(wait=>hasPassed(position,wait.id)===!0)}close(){
this.#ended=new Error("the subscription was closed"),this.#cancelQuiet(),this.#probing!==null&&clearTimeout(this.#probing),
this.#ending.abort();for(let wait of[...this.#waits])wait.finish(this.#ended)}#begin(wait){this.#ended?wait.finish(
this.#ended):this.#position&&hasPassed(this.#position,wait.id)?wait.finish():(this.#watchQuiet(),this.#pause=PROBES[0],
this.#probeLater())}#probeLater(){let hasUnseen=[...this.#waits].some(wait=>!wait.isSeen);this.#probing!==null||
this.#ended||!hasUnseen||(this.#probing=setTimeout(()=>{this.#ask()},this.#pause),this.#pause=Math.min(PROBES[1],
this.#pause*2))}async#ask(){let passed=this.#position?await this.#probe(this.#position,this.#ending.signal).catch(
()=>null):null;passed&&this.#finish(wait=>!wait.isSeen&&isOutOfSight(wait.id,passed)),this.#probing=null,this.#probeLater()}#finish(isDone){
for(let wait of[...this.#waits])isDone(wait)&&wait.finish()}#watchQuiet(){if(this.#cancelQuiet(),![...this.#waits].
some(wait=>wait.isSeen))return;let left=Math.max(0,this.#changedAt+QUIET-Date.now());this.#timer=setTimeout(()=>this.#finish(
wait=>wait.isSeen),left)}#cancelQuiet(){this.#timer!==null&&clearTimeout(this.#timer),this.#timer=null}#remember(id){
this.#seen.add(id),this.#seen.size>REMEMBERED&&this.#seen.delete(this.#seen.values().next().value)}};function isOutOfSight(id,{
position,transactions}){return!transactions.has(String(id))&&hasPassed(position,id)===!0}function numberOf(id){
let text2=String(id);if(/^\d+$/.test(text2))return BigInt(text2);throw new TypeError(`${JSON.stringify(text2)}\
 is no transaction id: pass the text of pg_current_xact_id()`)}var OVERDUE=2e3,CHECK=1e3,NO_LOG="the connection was lost, and these tables keep no log to resume from",NO_HEADERS='\
an EventSource cannot send headers: leave out transport: "eventsource"',NEW={status:"connecting",reason:null,retryAt:null,
attempt:0,role:"alone"},LiveSubscription=class{ready;#options;#base;#address;#rows;#stream;#listeners=new Listeners;#transactions=new Transactions(
(...asked)=>this.#probe(...asked));#tabs=null;#position;#state=NEW;#whole=!1;#isFull=!1;#wasLive=!1;#isTouched=!1;#settle;#timer;#endComebacks;constructor(options,base){
let{snapshot=!0,after,maxRows=1e4,transport,headers}=options;if(transport==="eventsource"&&headers)throw new TypeError(
NO_HEADERS);this.#options={...options,snapshot},this.#base=base,this.#address=streamAddress(options,base),this.#rows=
new Rows(listed(options.tables),snapshot?1/0:maxRows),this.#position=after??null,this.#transactions.reached(this.#position),
this.ready=new Promise((resolve,reject)=>this.#settle={resolve,reject}),this.ready.catch(()=>{}),this.#listen(
options),this.#stream=new Stream(options,{begins:()=>this.#begin(),address:()=>this.#wanted(),message:message=>this.#handle(
message),changed:news=>this.#update(news)}),this.#timer=setInterval(()=>this.#check(),CHECK),this.#endComebacks=
onComeback(()=>this.#stream.hurry());let group=groupOf(this.#options,this.#address);this.#tabs=group===null?null:
joined(group,this.#sharing()),this.#tabs||this.#stream.connect()}get rows(){return this.#rows.of(0)}get list(){
return this.#rows.list}get(key){return this.#rows.get(keyOf(key))}of(table){let index=listed(this.#options.tables).
indexOf(table);return this.#rows.of(index)}get position(){return this.#position}get state(){return this.#state}on(event,listener){
return this.#listeners.add(event,listener)}awaitTransaction(id,options){return this.#transactions.wait(id,options)}close(){
clearInterval(this.#timer),this.#endComebacks(),this.#stream.close(),this.#tabs?.close(),this.#update({status:"\
closed",reason:null,retryAt:null}),this.#transactions.close(),this.#listeners.clear(),this.#settle.reject(new Error(
"the subscription was closed before it was live"))}#listen(options){this.on("change",change=>options.onChange?.(
change)),this.on("snapshot",subscription=>options.onSnapshot?.(subscription)),this.on("reset",reason=>options.
onReset?.(reason)),this.on("state",state=>options.onState?.(state))}#check(){this.#tabs?.follows?this.#tabs.check():
this.#stream.check()}#sharing(){let as=role=>this.#update({role});return{lead:()=>(as("leader"),void this.#stream.
connect()),follow:()=>(as("follower"),this.#stream.close()),alone:()=>(as("alone"),this.#tabs=null,void this.#stream.
connect()),message:message=>this.#receive(message),status:({role:_,...state})=>this.#update(state),adopt:state=>this.#adopt(
state),state:()=>this.#whole?this.#shared():null,silence:()=>this.#state.status==="live"?SILENCE*this.#stream.
interval*1e3:OVERDUE,isOverdue:()=>this.#state.retryAt!==null&&Date.now()-this.#state.retryAt>OVERDUE}}#begin(){
this.#rows.unstage(),this.#confessGap(),this.#whole=!this.#options.snapshot||!!this.#position,this.#whole||this.#transactions.
beginsSnapshot()}async#probe(position,signal){return this.#state.status!=="live"?null:probe(await this.#wanted(
position),this.#options,signal)}async#wanted(after=this.#position){let target=new URL(this.#address);after?target.
searchParams.set("after",after):this.#options.snapshot&&target.searchParams.set("snapshot","true");let ticket=await ticketOf(
this.#options,()=>ticketAddress(this.#options.url,this.#base));return ticket&&target.searchParams.set("ticket",
ticket),target.href}#confessGap(){!this.#wasLive||this.#position||this.#options.snapshot||(this.#wasLive=!1,this.#handle(
{type:"reset",data:{reason:NO_LOG,continues:!0},id:""}))}#handle(message){this.#receive(message),passOn(this.#tabs,
message)}#receive({type,data,id}){if(type==="reset"&&data.key)return this.#passBy(data,id);if(type==="reset")return this.#reset(
String(data.reason),data.continues===!0);if(type==="snapshot")return this.#rows.stage(data);if(type==="heartbe\
at"?this.#stream.interval=Number(data.interval)||this.#stream.interval:type==="snapshot-end"?this.#complete(this.#rows.
swap()):this.#apply(type,data,id),!!this.#whole)return this.#moveTo(id),type==="heartbeat"&&this.#transactions.
beat(id),this.#update({status:"live",reason:null,retryAt:null,attempt:0})}#moveTo(position){position&&(this.#position=
position,this.#transactions.reached(position))}#apply(operation,data,id){if(this.#transactions.saw(data.transaction_id),
!data.key&&operation!=="truncate")return this.#vague(data);let held=this.#rows.apply(operation,data);if(!(operation===
"delete"&&!held&&this.#isFull))return this.#touch(),this.#emit(changeFrom({...data,operation},held??null,id||null))}#passBy({
reason,...row},id){this.#call("reset",reason);let held=this.#whole?this.#rows.apply("delete",row):void 0;held&&
(this.#touch(),this.#emit(changeFrom({...row,operation:"delete"},held,id||null))),this.#whole&&this.#moveTo(id)}#vague(data){
return this.#options.snapshot?this.#reset(`many rows of ${data.table} changed at once`,!0):this.#emit(changeFrom(
data,null,null))}#complete(differences2){this.#whole=this.#isFull=!0,this.#touch();for(let change of differences2)
this.#emit({...change,source:"snapshot",position:null});this.#transactions.completed(),this.#call("snapshot",this)}#reset(reason,continues){
this.#position=null,this.#transactions.reached(null),this.#call("reset",reason),!(this.#tabs?.follows||this.#state.
status==="closed")&&(this.#options.snapshot||!continues)&&this.#stream.restart(reason)}#shared(){let rows=this.#options.
snapshot?this.#rows.contents():null,{interval}=this.#stream;return{rows,position:this.#position,interval,news:newsOf(
this.#state)}}#adopt({rows,position,interval,news}){this.#position=position,this.#stream.interval=interval,rows&&
this.#complete(this.#rows.replace(rows)),this.#whole=!0,this.#transactions.reached(position),this.#update(news)}#emit(change){
this.#call("change",change)}#touch(){this.#isTouched||(this.#isTouched=!0,queueMicrotask(()=>{this.#isTouched=
!1,this.#call("rows",this)}))}#update(news){let old=this.#state,names=Object.keys(news);if(old.status==="close\
d"||names.every(name=>old[name]===news[name]))return;this.#state={...old,...news};let isLive=this.#state.status===
"live";this.#wasLive||=isLive,isLive&&this.#settle.resolve(this),this.#tabs?.shareStatus(this.#state),this.#listeners.
notify("state",this.#state)}#call(event,value){this.#state.status!=="closed"&&this.#listeners.notify(event,value)}};var besideScript=()=>new URL("v1/",import.meta.url);function subscribe(options){return new LiveSubscription(options,
besideScript)}function changesUrl(query){return streamAddress(query,besideScript)}export{TransactionTimeoutError,changesUrl,keyOf,subscribe};
